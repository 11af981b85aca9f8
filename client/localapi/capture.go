package localapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// CaptureRequest asks for the packets that the filter decides on.
type CaptureRequest struct {
	// Peer is the name or address of the one device whose packets are wanted;
	// empty for all.
	Peer string
	// Denied leaves out what passed.
	Denied bool
	// Packets and Duration end the capture; zero stands for the daemon's
	// bounds, which it does not exceed.
	Packets  uint64
	Duration time.Duration
}

// Capture writes a running capture to w as pcapng and returns when it has
// ended. It is called once.
type Capture func(ctx context.Context, w io.Writer) error

func (s *Server) capture(r *http.Request) (any, error) {
	q := r.URL.Query()
	c := CaptureRequest{Peer: q.Get("peer")}
	var err error
	if text := q.Get("denied"); text != "" {
		if c.Denied, err = strconv.ParseBool(text); err != nil {
			return nil, Errorf(CodeBadRequest, "denied=%q is neither true nor false", text)
		}
	}
	if text := q.Get("packets"); text != "" {
		if c.Packets, err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, Errorf(CodeBadRequest, "packets=%q is no number", text)
		}
	}
	if text := q.Get("duration"); text != "" {
		if c.Duration, err = time.ParseDuration(text); err != nil || c.Duration < 0 {
			return nil, Errorf(CodeBadRequest, "duration=%q is no time such as 10s", text)
		}
	}
	write, err := s.decided.Capture(r.Context(), c)
	if err != nil {
		return nil, err
	}
	return stream{"application/x-pcapng", func(ctx context.Context, w io.Writer) error {
		return write(ctx, flusher{w})
	}}, nil
}

// flusher sends at once what is written.
type flusher struct{ io.Writer }

// Write implements io.Writer.
func (f flusher) Write(b []byte) (int, error) {
	n, err := f.Writer.Write(b)
	if err == nil {
		err = flush(f.Writer)
	}
	return n, err
}

// Capture begins a capture; the pcapng file is read from what it returns, which
// the caller closes. It ends with ctx, too.
func (c *Client) Capture(ctx context.Context, r CaptureRequest) (io.ReadCloser, error) {
	q := url.Values{
		"peer": {r.Peer}, "denied": {strconv.FormatBool(r.Denied)},
		"packets": {strconv.FormatUint(r.Packets, 10)}, "duration": {r.Duration.String()},
	}
	return c.open(ctx, http.MethodGet, "capture?"+q.Encode())
}
