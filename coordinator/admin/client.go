package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// ErrNotRunning means that nobody answers on the socket.
var ErrNotRunning = errors.New("admin: the coordinator is not running")

// Client speaks to a running coordinator.
type Client struct {
	http   *http.Client
	socket string
}

// NewClient returns a Client of the coordinator whose socket has the path. It
// connects when it is used.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{
		http:   &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: time.Minute},
		socket: socket,
	}
}

// call sends body, nil for none, and reads the answer into out. The error
// wraps ErrNotRunning, or is an *Error, or the connection's.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("admin: encoding the request: %w", err)
		}
		sent = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://coordinator"+path, sent)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	response, err := c.http.Do(r)
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return fmt.Errorf("%w: nobody answers on %s: %w", ErrNotRunning, c.socket, dial.Err)
	case err != nil:
		return fmt.Errorf("admin: asking the coordinator: %w", err)
	}
	defer response.Body.Close()
	d := json.NewDecoder(response.Body)
	if response.StatusCode != http.StatusOK {
		var answer struct {
			Error *Error `json:"error"`
		}
		if err := d.Decode(&answer); err != nil || answer.Error == nil {
			return fmt.Errorf("admin: the coordinator answers %s", response.Status)
		}
		return answer.Error
	}
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("admin: reading the coordinator's answer: %w", err)
	}
	return nil
}

func ask[T any](ctx context.Context, c *Client, method, path string, body any) (out T, err error) {
	err = c.call(ctx, method, path, body, &out)
	return out, err
}

// Status returns what there is to say about the coordinator at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, "GET", "/v1/status", nil)
}

// Users returns all users.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	return ask[[]User](ctx, c, "GET", "/v1/users", nil)
}

// CreateUser adds a user.
func (c *Client) CreateUser(ctx context.Context, login string) (User, error) {
	return ask[User](ctx, c, "POST", "/v1/users", CreateUser{Login: login})
}

// SuspendUser stops the devices and join keys of a user from working.
func (c *Client) SuspendUser(ctx context.Context, login string) (User, error) {
	return ask[User](ctx, c, "POST", "/v1/users/"+url.PathEscape(login)+"/suspend", nil)
}

// ResumeUser undoes SuspendUser.
func (c *Client) ResumeUser(ctx context.Context, login string) (User, error) {
	return ask[User](ctx, c, "POST", "/v1/users/"+url.PathEscape(login)+"/resume", nil)
}

// Keys returns all join keys.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	return ask[[]Key](ctx, c, "GET", "/v1/keys", nil)
}

// CreateKey adds a join key.
func (c *Client) CreateKey(ctx context.Context, k CreateKey) (NewKey, error) {
	return ask[NewKey](ctx, c, "POST", "/v1/keys", k)
}

// RevokeKey makes the join key with the id useless.
func (c *Client) RevokeKey(ctx context.Context, id string) (Key, error) {
	return ask[Key](ctx, c, "POST", "/v1/keys/"+url.PathEscape(id)+"/revoke", nil)
}

// Devices returns all devices.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	return ask[[]Device](ctx, c, "GET", "/v1/devices", nil)
}

// Device returns the device of the name or id.
func (c *Client) Device(ctx context.Context, name string) (DeviceDetail, error) {
	return ask[DeviceDetail](ctx, c, "GET", "/v1/devices/"+url.PathEscape(name), nil)
}

// SetTags gives the device of the name or id exactly these tags.
func (c *Client) SetTags(ctx context.Context, name string, tags []string) (Device, error) {
	return ask[Device](ctx, c, "POST", "/v1/devices/"+url.PathEscape(name)+"/tags", SetTags{tags})
}

// RevokeDevice revokes the device of the name or id, and, unless the join key is
// to be kept, that with it.
func (c *Client) RevokeDevice(ctx context.Context, name string, keepKey bool) (RevokedDevice, error) {
	return ask[RevokedDevice](ctx, c, "POST", "/v1/devices/"+url.PathEscape(name)+"/revoke", RevokeDevice{keepKey})
}

// ApproveRoutes lets the device of the name or id route the prefixes.
func (c *Client) ApproveRoutes(ctx context.Context, name string, routes []netip.Prefix) (Device, error) {
	return ask[Device](ctx, c, "POST", "/v1/devices/"+url.PathEscape(name)+"/approve-routes", ChangeRoutes{routes})
}

// RemoveRoutes takes approvals of the device of the name or id back.
func (c *Client) RemoveRoutes(ctx context.Context, name string, routes []netip.Prefix) (Device, error) {
	return ask[Device](ctx, c, "POST", "/v1/devices/"+url.PathEscape(name)+"/remove-routes", ChangeRoutes{routes})
}

// Policy returns the policy in force.
func (c *Client) Policy(ctx context.Context) (Policy, error) {
	return ask[Policy](ctx, c, "GET", "/v1/policy", nil)
}

// SetPolicy replaces the policy.
func (c *Client) SetPolicy(ctx context.Context, p SetPolicy) (Policy, error) {
	return ask[Policy](ctx, c, "PUT", "/v1/policy", p)
}

// CheckPolicy reports whether the text could be the policy.
func (c *Client) CheckPolicy(ctx context.Context, text string) (Check, error) {
	return ask[Check](ctx, c, "POST", "/v1/policy/check", SetPolicy{Text: text})
}

// Candidate returns the candidate policy.
func (c *Client) Candidate(ctx context.Context) (Candidate, error) {
	return ask[Candidate](ctx, c, "GET", "/v1/policy/candidate", nil)
}

// SetCandidate puts a policy into audit beside the one in force.
func (c *Client) SetCandidate(ctx context.Context, p SetPolicy) (Candidate, error) {
	return ask[Candidate](ctx, c, "PUT", "/v1/policy/candidate", p)
}

// ClearCandidate ends the audit and returns what was in it.
func (c *Client) ClearCandidate(ctx context.Context) (Candidate, error) {
	return ask[Candidate](ctx, c, "DELETE", "/v1/policy/candidate", nil)
}

// PromoteCandidate puts the candidate policy in force.
func (c *Client) PromoteCandidate(ctx context.Context, p PromoteCandidate) (Policy, error) {
	return ask[Policy](ctx, c, "POST", "/v1/policy/candidate/promote", p)
}
