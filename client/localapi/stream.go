package localapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// stream is an answer that is written bit by bit.
type stream struct {
	contentType string
	// write ends with the answer, or with ctx. An error breaks the connection
	// off, so that the reader does not take what came for the whole.
	write func(ctx context.Context, w io.Writer) error
}

// serveStream writes a stream.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request, answer stream) {
	w.Header().Set("Content-Type", answer.contentType)
	// The reader knows now that its request was accepted. Where it is gone,
	// writing finds out, and gives back what the stream holds.
	_ = flush(w)
	err := answer.write(r.Context(), w)
	if err == nil {
		return
	}
	s.log.Debug("local API: writing a stream", "path", r.URL.Path, "error", err)
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

// flush sends what was written so far.
func flush(w io.Writer) error {
	if rw, ok := w.(http.ResponseWriter); ok {
		return http.NewResponseController(rw).Flush()
	}
	return nil
}

// open requests a stream. The caller closes it.
func (c *Client) open(ctx context.Context, method, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://local"+Prefix+path, nil)
	if err != nil {
		return nil, fmt.Errorf("localapi: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	e := &Error{}
	if err := json.NewDecoder(response.Body).Decode(e); err != nil || e.Code == "" {
		return nil, fmt.Errorf("localapi: the daemon answers %s", response.Status)
	}
	return nil, e
}
