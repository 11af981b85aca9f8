package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/admin"
	"github.com/warren-overlay/warren/coordinator/audit"
	"github.com/warren-overlay/warren/coordinator/netmap"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/store"
)

// firstPolicy is the policy of a new network.
const firstPolicy = `// Who may reach what. Nothing is allowed until a rule says so, for example:
//
//   {
//     "groups": {"group:eng": ["alice@example.com"]},
//     "tagOwners": {"tag:db": ["group:eng"]},
//     "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["tag:db:5432"]}],
//   }
{
  "acls": [],
}
`

// Server is one coordinator. Open makes it, Run serves, Close gives the data
// directory back.
type Server struct {
	cfg     Config
	dir     *store.Dir
	db      *store.DB
	keys    store.Keys
	genesis *authority.Genesis
	created bool
	mux     *http.ServeMux
	metrics *metrics
	limits  *limits
	members *Members
	started time.Time

	// Owned by the loop, and by Open before it runs.
	state   *registry.State
	network *netmap.Network
	head    audit.Head
	// kept is the head that was last written beside the database, keptAt when
	// that was last tried, keepFailed whether in vain.
	kept       audit.Head
	keptAt     time.Time
	keepFailed bool
	conns      map[*conn]struct{}
	byNode     map[ident.NodeID]*conn
	// dirty have something to be done; foremost, too, and before those, because
	// what they may see or do has changed; narrowed have something to be taken
	// away from them, or are to be ended, before all that.
	dirty, foremost, narrowed map[*conn]struct{}
	// unrecorded counts the refused registrations that the audit log is yet to
	// tell of.
	unrecorded uint64
	// due is when the first session has something to do.
	due time.Time
	// seen says when devices that are not connected were last; unsaved are
	// those of them that the disk does not have yet.
	seen, unsaved map[ident.NodeID]time.Time
	// broken is why the loop must end.
	broken error
	ending bool

	// calls are what the loop is to do, in any order; before them it does what is
	// in written, and before that what is in urgent.
	calls, written, urgent chan func()
	// busySince is when the loop began with what it does, in nanoseconds since
	// 1970; zero where it waits.
	busySince atomic.Int64
	// done is closed when the loop has ended.
	done chan struct{}
	// handlers are the control connections being served.
	handlers sync.WaitGroup
}

var _ admin.Backend = (*Server)(nil)

// Open opens the data directory, where it makes a network if there is none,
// and loads everything. The error says what to do where something can be done.
// Close must be called, also where Run was not.
func Open(ctx context.Context, cfg Config) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, mux: http.NewServeMux(), started: cfg.Now(), limits: newLimits(),
		conns: make(map[*conn]struct{}), byNode: make(map[ident.NodeID]*conn), dirty: make(map[*conn]struct{}), foremost: make(map[*conn]struct{}), narrowed: make(map[*conn]struct{}),
		unsaved: make(map[ident.NodeID]time.Time), calls: make(chan func()), urgent: make(chan func()), written: make(chan func()), done: make(chan struct{}),
	}
	s.metrics = newMetrics(s)
	if s.dir, err = store.OpenDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.db, err = s.dir.Open(ctx); err != nil {
		return nil, err
	}
	if err := s.loadNetwork(ctx); err != nil {
		return nil, err
	}
	if err := s.verify(ctx); err != nil {
		return nil, err
	}
	identity := registry.Network{Fingerprint: s.genesis.Fingerprint(), Prefix4: s.genesis.Prefix4, Prefix6: s.genesis.Prefix6}
	if s.state, s.head, err = s.db.Load(ctx, identity); err != nil {
		return nil, err
	}
	if s.seen, err = s.db.LastSeen(ctx); err != nil {
		return nil, err
	}
	s.network, err = netmap.New(netmap.Config{
		Genesis: s.genesis, Signer: s.keys.Signing, Labels: s.keys.Label, Validity: cfg.CertificateValidity, Relays: cfg.Relays, STUN: cfg.STUN,
	}, s.state, s.started)
	if err != nil {
		return nil, err
	}
	if err := s.network.CandidateError(); err != nil {
		cfg.Logger.Error("the candidate policy does not compile; no device is told of it", "error", err)
	}
	s.members = newMembers(s.genesis, cfg.Relay, s.state, s.started)
	if s.state.Policy().Epoch == 0 {
		if _, err := s.execute(ctx, "coordinator", registry.SetPolicy{Text: firstPolicy}); err != nil {
			return nil, err
		}
	}
	s.renew(ctx)
	s.routes()
	return s, s.broken
}

// loadNetwork reads the genesis record and the keys that it names, and makes
// both where there is no network yet.
func (s *Server) loadNetwork(ctx context.Context) error {
	raw, err := s.db.Genesis(ctx)
	if err != nil {
		return err
	}
	if raw == nil {
		if err := s.dir.MakeKeys(s.cfg.Rand); err != nil {
			return err
		}
	}
	if s.keys, err = s.dir.LoadKeys(); err != nil {
		return err
	}
	if raw == nil {
		if raw, err = s.create(ctx); err != nil {
			return err
		}
	}
	if s.genesis, err = decodeOwn(raw); err != nil {
		return err
	}
	signs := false
	for _, signer := range s.genesis.Signers {
		signs = signs || signer.Key == s.keys.Signing.Public()
	}
	if s.genesis.Channel != s.keys.Channel.Public() || !signs {
		return fmt.Errorf("%w: the keys in %s are not those of its network; restore the files that belong together", store.ErrKeyFile, s.cfg.Dir)
	}
	return nil
}

// create begins a network and returns its genesis record.
func (s *Server) create(ctx context.Context) ([]byte, error) {
	prefix6, err := randomULA(s.cfg)
	if err != nil {
		return nil, err
	}
	g := &authority.Genesis{
		Created: s.started.UTC().Truncate(time.Second), Channel: s.keys.Channel.Public(),
		Signers: []authority.Signer{{
			Key: s.keys.Signing.Public(), Roles: authority.SignDevices | authority.SignRules | authority.SignRelayTokens,
		}},
		Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Prefix6: prefix6,
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	raw := g.AppendBinary(nil)
	s.created = true
	return raw, s.db.Create(ctx, raw, &audit.Entry{
		Time: s.started, Actor: "coordinator", Action: store.CreateAction,
		Details: []audit.Detail{{Key: store.FingerprintDetail, Value: g.Fingerprint().String()}},
	})
}

// randomULA draws a network's IPv6 range (RFC 4193, section 3.2).
func randomULA(cfg Config) (netip.Prefix, error) {
	b := [16]byte{0xfd}
	if _, err := cfg.Rand.Read(b[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("server: drawing the IPv6 range: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 48), nil
}

// decodeOwn reads the genesis record that this coordinator wrote itself.
func decodeOwn(raw []byte) (*authority.Genesis, error) {
	return authority.DecodeGenesis(raw, fingerprintOf(raw))
}

// Fingerprint returns the network's fingerprint.
func (s *Server) Fingerprint() ident.Fingerprint { return s.genesis.Fingerprint() }

// Genesis returns the network's genesis record, which must not be written to.
func (s *Server) Genesis() *authority.Genesis { return s.genesis }

// Created reports whether Open made the network.
func (s *Server) Created() bool { return s.created }

// Members returns who may use the network's relays.
func (s *Server) Members() *Members { return s.members }

// Socket returns the path of the administrator's socket.
func (s *Server) Socket() string { return s.dir.Socket() }

// Close closes the database and gives the directory back. Run must have
// returned.
func (s *Server) Close() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	return errors.Join(err, s.dir.Close())
}

// ErrStopped means that the coordinator does not serve any more.
var ErrStopped = errors.New("server: the coordinator is stopping")

// do runs f in the loop and waits for it.
func (s *Server) do(ctx context.Context, f func()) error { return s.doBy(ctx, s.calls, f) }

// doBy is do by one of the loop's channels.
func (s *Server) doBy(ctx context.Context, calls chan<- func(), f func()) error {
	finished := make(chan struct{})
	select {
	case calls <- func() { defer close(finished); f() }:
	case <-s.done:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-finished:
		return nil
	case <-s.done:
		// The loop may have ended with f as its last.
		select {
		case <-finished:
			return nil
		default:
			return ErrStopped
		}
	}
}

// Execute implements admin.Backend.
func (s *Server) Execute(ctx context.Context, actor string, cmd registry.Command) (result registry.Result, err error) {
	// What was begun is finished whether or not anyone still waits for it.
	background := context.WithoutCancel(ctx)
	doErr := s.doBy(ctx, s.urgent, func() { result, err = s.execute(background, actor, cmd) })
	return result, errors.Join(doErr, err)
}

// Inspect implements admin.Backend.
func (s *Server) Inspect(ctx context.Context, f func(*admin.View)) error {
	return s.doBy(ctx, s.urgent, func() {
		f(&admin.View{State: s.state, Network: s.network, LastSeen: s.seen, Now: s.cfg.Now()})
	})
}

// Users returns how many users there are. It must not be called while Run
// runs.
func (s *Server) Users() int {
	users, _, _ := s.state.Counts()
	return users
}
