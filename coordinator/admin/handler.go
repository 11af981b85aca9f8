package admin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
	"github.com/warren-overlay/warren/coordinator/netmap"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
	"github.com/warren-overlay/warren/coordinator/wire"
)

// View is the coordinator as it is at one moment. It must not be kept or
// written to.
type View struct {
	State    *registry.State
	Network  *netmap.Network
	LastSeen map[ident.NodeID]time.Time
	Now      time.Time
}

// Backend is a running coordinator.
type Backend interface {
	// Execute runs a command; the change is on the disk when it returns.
	Execute(ctx context.Context, actor string, cmd registry.Command) (registry.Result, error)
	// Inspect calls f while nothing changes.
	Inspect(ctx context.Context, f func(*View)) error
}

// Config is what a Handler needs.
type Config struct {
	Backend Backend
	Version string
	// Rand makes join keys.
	Rand   io.Reader
	Logger *slog.Logger
}

// maxBody is the longest body of a request in bytes: a policy of the longest
// kind, with every character escaped, does not fit; ordinary text does.
const maxBody = 4 * registry.MaxPolicy

// Handler serves the administrator's requests.
type Handler struct {
	cfg Config
	mux *http.ServeMux
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler. Its server's connections must come from Serve,
// or every actor is unknown.
func NewHandler(cfg Config) *Handler {
	h := &Handler{cfg: cfg, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /v1/status", answer(h, h.status))
	h.mux.HandleFunc("GET /v1/users", answer(h, h.users))
	h.mux.HandleFunc("POST /v1/users", answer(h, h.createUser))
	h.mux.HandleFunc("POST /v1/users/{login}/suspend", answer(h, h.suspendUser))
	h.mux.HandleFunc("POST /v1/users/{login}/resume", answer(h, h.resumeUser))
	h.mux.HandleFunc("GET /v1/keys", answer(h, h.keys))
	h.mux.HandleFunc("POST /v1/keys", answer(h, h.createKey))
	h.mux.HandleFunc("POST /v1/keys/{id}/revoke", answer(h, h.revokeKey))
	h.mux.HandleFunc("GET /v1/devices", answer(h, h.devices))
	h.mux.HandleFunc("GET /v1/devices/{name}", answer(h, h.device))
	h.mux.HandleFunc("POST /v1/devices/{name}/revoke", answer(h, h.revokeDevice))
	h.mux.HandleFunc("POST /v1/devices/{name}/tags", answer(h, h.setTags))
	h.mux.HandleFunc("POST /v1/devices/{name}/approve-routes", answer(h, h.approveRoutes))
	h.mux.HandleFunc("POST /v1/devices/{name}/remove-routes", answer(h, h.removeRoutes))
	h.mux.HandleFunc("GET /v1/policy", answer(h, h.policy))
	h.mux.HandleFunc("PUT /v1/policy", answer(h, h.setPolicy))
	h.mux.HandleFunc("GET /v1/policy/candidate", answer(h, h.candidate))
	h.mux.HandleFunc("PUT /v1/policy/candidate", answer(h, h.setCandidate))
	h.mux.HandleFunc("DELETE /v1/policy/candidate", answer(h, h.clearCandidate))
	h.mux.HandleFunc("POST /v1/policy/candidate/promote", answer(h, h.promoteCandidate))
	h.mux.HandleFunc("GET /v1/settings", answer(h, h.settings))
	h.mux.HandleFunc("PUT /v1/settings/{name}", answer(h, h.setSetting))
	h.mux.HandleFunc("POST /v1/policy/check", answer(h, h.checkPolicy))
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h.mux.ServeHTTP(w, r)
}

// answer makes a handler of a function that reads a request and returns what
// is to be sent as JSON.
func answer[T any](h *Handler, f func(*http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		body, err := f(r)
		if err != nil {
			status, e := describe(err)
			if e.Code == CodeInternal {
				h.cfg.Logger.Error("administrator's request failed", "path", r.URL.Path, "error", err)
			}
			w.WriteHeader(status)
			json.NewEncoder(w).Encode(map[string]*Error{"error": e})
			return
		}
		json.NewEncoder(w).Encode(body)
	}
}

// describe says what an error is for the administrator, who may know it all.
func describe(err error) (int, *Error) {
	var policy *netmap.PolicyError
	var own *Error
	switch {
	case errors.As(err, &own):
		return http.StatusBadRequest, own
	case errors.As(err, &policy):
		return http.StatusBadRequest, &Error{CodeInvalid, "the policy is refused; the one in force stays", problems(policy.Problems)}
	}
	for _, c := range []struct {
		is     error
		status int
		code   Code
	}{
		{registry.ErrInvalid, http.StatusBadRequest, CodeInvalid},
		{registry.ErrNotFound, http.StatusNotFound, CodeNotFound},
		{registry.ErrExists, http.StatusConflict, CodeExists},
		{registry.ErrConflict, http.StatusConflict, CodeConflict},
		{registry.ErrSuspended, http.StatusConflict, CodeConflict},
		{registry.ErrFull, http.StatusInsufficientStorage, CodeFull},
		{store.ErrBusy, http.StatusServiceUnavailable, CodeUnavailable},
		{context.Canceled, http.StatusServiceUnavailable, CodeUnavailable},
	} {
		if errors.Is(err, c.is) {
			return c.status, &Error{Code: c.code, Message: strings.TrimPrefix(err.Error(), "registry: ")}
		}
	}
	return http.StatusInternalServerError, &Error{Code: CodeInternal, Message: err.Error()}
}

// decode reads a request's body, strictly.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &Error{Code: CodeInvalid, Message: "the request's body: " + err.Error()}
	}
	return nil
}

// peerKey is where a connection's user id is in its context.
type peerKey struct{}

// ConnContext tells a Handler who is at the other end of a Unix socket; it is
// for http.Server.ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	unix, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *syscall.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if controlErr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer.Uid)
}

func actor(r *http.Request) string {
	if uid, ok := r.Context().Value(peerKey{}).(uint32); ok {
		return fmt.Sprint("admin uid ", uid)
	}
	return "admin"
}

func (h *Handler) execute(r *http.Request, cmd registry.Command) (registry.Result, error) {
	return h.cfg.Backend.Execute(r.Context(), actor(r), cmd)
}

// look returns what f makes of the coordinator's present state.
func look[T any](h *Handler, r *http.Request, f func(*View) (T, error)) (out T, err error) {
	inspectErr := h.cfg.Backend.Inspect(r.Context(), func(v *View) { out, err = f(v) })
	return out, errors.Join(inspectErr, err)
}

func (h *Handler) status(r *http.Request) (Status, error) {
	return look(h, r, func(v *View) (Status, error) {
		s := Status{Version: h.cfg.Version, Fingerprint: v.State.Network().Fingerprint.String(), Epoch: uint64(v.State.Policy().Epoch)}
		s.Users, s.Devices, _ = v.State.Counts()
		for _, f := range registry.Features() {
			if !v.State.Off(f).IsZero() {
				s.Off = append(s.Off, string(f))
			}
		}
		if c := v.State.Candidate(); c != nil {
			s.Candidate = uint64(c.Epoch)
		}
		for _, d := range v.State.Devices() {
			if v.Network.Presence(d.ID).Online {
				s.Online++
			}
		}
		return s, nil
	})
}

func (h *Handler) users(r *http.Request) ([]User, error) {
	return look(h, r, func(v *View) ([]User, error) {
		count := make(map[ident.UserID]int)
		for _, d := range v.State.Devices() {
			count[d.Owner]++
		}
		out := []User{}
		for _, u := range v.State.Users() {
			out = append(out, describeUser(u, count[u.ID]))
		}
		return out, nil
	})
}

func describeUser(u *registry.User, devices int) User {
	return User{ID: u.ID.String(), Login: u.Login, Created: u.Created, Suspended: u.Suspended, Devices: devices}
}

func (h *Handler) createUser(r *http.Request) (User, error) {
	var body CreateUser
	if err := decode(r, &body); err != nil {
		return User{}, err
	}
	result, err := h.execute(r, registry.CreateUser{Login: body.Login})
	if err != nil {
		return User{}, err
	}
	return describeUser(result.User, 0), nil
}

func (h *Handler) suspendUser(r *http.Request) (User, error) {
	return h.changeUser(r, registry.SuspendUser{Login: r.PathValue("login")})
}

func (h *Handler) resumeUser(r *http.Request) (User, error) {
	return h.changeUser(r, registry.ResumeUser{Login: r.PathValue("login")})
}

// changeUser runs a command about a user and returns the user as it is then.
func (h *Handler) changeUser(r *http.Request, cmd registry.Command) (User, error) {
	result, err := h.execute(r, cmd)
	if err != nil {
		return User{}, err
	}
	return look(h, r, func(v *View) (User, error) {
		return describeUser(result.User, len(v.State.DevicesOf(result.User.ID))), nil
	})
}

func (h *Handler) keys(r *http.Request) ([]Key, error) {
	return look(h, r, func(v *View) ([]Key, error) {
		out := []Key{}
		for _, k := range v.State.Keys() {
			out = append(out, describeKey(v.State, k, v.Now))
		}
		return out, nil
	})
}

func describeKey(s *registry.State, k *registry.Key, now time.Time) Key {
	out := Key{
		ID: k.ID, Tags: texts(k.Tags), Reusable: k.Reusable, Ephemeral: k.Ephemeral,
		Created: k.Created, Expires: k.Expires, Revoked: k.Revoked, Uses: k.Uses, State: "usable",
	}
	if u := s.User(k.User); u != nil {
		out.User = u.Login
	}
	if reason := k.Usable(now); reason != "" {
		out.State = reason
	} else if s.Suspended(k.User) {
		out.State = "suspended"
	}
	return out
}

func texts(tags []ident.Tag) []string {
	var out []string
	for _, t := range tags {
		out = append(out, string(t))
	}
	return out
}

func (h *Handler) createKey(r *http.Request) (NewKey, error) {
	var body CreateKey
	if err := decode(r, &body); err != nil {
		return NewKey{}, err
	}
	if body.ExpirySeconds <= 0 || body.ExpirySeconds > int64(registry.MaxKeyLifetime/time.Second) {
		return NewKey{}, &Error{Code: CodeInvalid, Message: fmt.Sprintf("the expiry must be positive, and %d days at most", registry.MaxKeyLifetime/(24*time.Hour))}
	}
	cmd := registry.CreateKey{Login: body.User, Reusable: body.Reusable, Ephemeral: body.Ephemeral}
	for _, t := range body.Tags {
		cmd.Tags = append(cmd.Tags, ident.Tag(t))
	}
	var network ident.Fingerprint
	if err := h.cfg.Backend.Inspect(r.Context(), func(v *View) {
		network = v.State.Network().Fingerprint
		cmd.Expires = v.Now.Add(time.Duration(body.ExpirySeconds) * time.Second)
	}); err != nil {
		return NewKey{}, err
	}
	key, err := wire.NewJoinKey(h.cfg.Rand, network)
	if err != nil {
		return NewKey{}, err
	}
	cmd.ID, cmd.Hash = key.ID, sha256.Sum256([]byte(key.Secret))
	result, err := h.execute(r, cmd)
	if err != nil {
		return NewKey{}, err
	}
	return look(h, r, func(v *View) (NewKey, error) {
		return NewKey{Key: describeKey(v.State, result.Key, v.Now), Text: key.Text()}, nil
	})
}

func (h *Handler) revokeKey(r *http.Request) (Key, error) {
	result, err := h.execute(r, registry.RevokeKey{ID: keyID(r.PathValue("id"))})
	if err != nil {
		return Key{}, err
	}
	return look(h, r, func(v *View) (Key, error) { return describeKey(v.State, result.Key, v.Now), nil })
}

// keyID takes a whole join key for its id, as one who has just it at hand may
// give it.
func keyID(text string) string {
	if k, err := wire.ParseJoinKey(text); err == nil {
		return k.ID
	}
	return strings.TrimPrefix(text, wire.JoinKeyPrefix)
}

func (h *Handler) policy(r *http.Request) (Policy, error) {
	return look(h, r, func(v *View) (Policy, error) { return describePolicy(v.State.Policy()), nil })
}

func describePolicy(p *registry.Policy) Policy {
	return Policy{Epoch: uint64(p.Epoch), Set: p.Set, Text: p.Text}
}

func (h *Handler) setPolicy(r *http.Request) (Policy, error) {
	var body SetPolicy
	if err := decode(r, &body); err != nil {
		return Policy{}, err
	}
	check, err := h.check(r, body.Text)
	if err != nil {
		return Policy{}, err
	}
	result, err := h.execute(r, registry.SetPolicy{Text: body.Text, If: ruleset.Epoch(body.IfEpoch)})
	if err != nil {
		return Policy{}, err
	}
	p := describePolicy(result.Policy)
	p.Warnings = check.Warnings
	return p, nil
}

func (h *Handler) checkPolicy(r *http.Request) (Check, error) {
	var body SetPolicy
	if err := decode(r, &body); err != nil {
		return Check{}, err
	}
	return h.check(r, body.Text)
}

func (h *Handler) check(r *http.Request, text string) (Check, error) {
	return look(h, r, func(v *View) (Check, error) {
		warnings, err := v.Network.CheckPolicy(text)
		return Check{Warnings: problems(warnings)}, err
	})
}
