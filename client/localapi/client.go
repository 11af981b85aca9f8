package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
)

// Errors of a Client beside *Error, compared with errors.Is.
var (
	// ErrNotRunning means that nothing serves the socket.
	ErrNotRunning = errors.New("localapi: the daemon is not running")
	// ErrNotPermitted means that the caller may not open the socket.
	ErrNotPermitted = errors.New("localapi: not permitted to speak with the daemon")
)

// Client speaks with a daemon. Its methods may be called concurrently and
// return *Error, ErrNotRunning, ErrNotPermitted or an error of the connection.
type Client struct {
	http *http.Client
	path string
}

// NewClient returns a Client for the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}}}
}

// Status returns the node's status.
func (c *Client) Status(ctx context.Context) (Status, error) { return c.StatusAfter(ctx, 0) }

// StatusAfter waits, for half a minute at most, until the status is of a later
// generation than after, and returns it.
func (c *Client) StatusAfter(ctx context.Context, after uint64) (Status, error) {
	path := "status"
	if after > 0 {
		path += "?after=" + strconv.FormatUint(after, 10)
	}
	return call[Status](ctx, c, http.MethodGet, path, nil)
}

// Up begins to connect; StatusAfter tells how it goes.
func (c *Client) Up(ctx context.Context, r UpRequest) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "up", r)
	return err
}

// Down disconnects.
func (c *Client) Down(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "down", nil)
	return err
}

// Logout ends the membership.
func (c *Client) Logout(ctx context.Context) (LogoutReply, error) {
	return call[LogoutReply](ctx, c, http.MethodPost, "logout", nil)
}

// Ping sends one ping and waits for the answer.
func (c *Client) Ping(ctx context.Context, r PingRequest) (PingReply, error) {
	return call[PingReply](ctx, c, http.MethodPost, "ping", r)
}

// Why says whether a flow may be opened, and by which rule or why not.
func (c *Client) Why(ctx context.Context, r WhyRequest) (WhyReply, error) {
	q := url.Values{
		"to": {r.To}, "from": {r.From},
		"protocol": {strconv.Itoa(int(r.Protocol))}, "port": {strconv.Itoa(int(r.Port))},
	}
	return call[WhyReply](ctx, c, http.MethodGet, "why?"+q.Encode(), nil)
}

// WhoIs says who has the address.
func (c *Client) WhoIs(ctx context.Context, addr netip.Addr) (WhoIsReply, error) {
	return call[WhoIsReply](ctx, c, http.MethodGet, "whois?addr="+url.QueryEscape(addr.String()), nil)
}

// Preferences returns what the user asked for.
func (c *Client) Preferences(ctx context.Context) (Preferences, error) {
	return call[Preferences](ctx, c, http.MethodGet, "prefs", nil)
}

// ChangePreferences changes preferences and returns them all.
func (c *Client) ChangePreferences(ctx context.Context, change PreferencesChange) (Preferences, error) {
	return call[Preferences](ctx, c, http.MethodPatch, "prefs", change)
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return out, fmt.Errorf("localapi: encoding a request: %w", err)
		}
		reader = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://local"+Prefix+path, reader)
	if err != nil {
		return out, fmt.Errorf("localapi: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return out, c.explain(err)
	}
	defer response.Body.Close()
	d := json.NewDecoder(response.Body)
	if response.StatusCode != http.StatusOK {
		e := &Error{}
		if err := d.Decode(e); err != nil || e.Code == "" {
			return out, fmt.Errorf("localapi: the daemon answers %s", response.Status)
		}
		return out, e
	}
	if err := d.Decode(&out); err != nil {
		return out, fmt.Errorf("localapi: reading the daemon's answer: %w", err)
	}
	return out, nil
}

func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w at %s", ErrNotPermitted, c.path)
	}
	return err
}
