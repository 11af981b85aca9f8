package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/netmap"
	"github.com/warren-overlay/warren/coordinator/registry"
	"github.com/warren-overlay/warren/coordinator/session"
	"github.com/warren-overlay/warren/coordinator/wire"
	"github.com/warren-overlay/warren/coordinator/wire/channel"
)

const (
	// writeTimeout bounds how long one frame may take to be written: the
	// longest map at 1 MB/s.
	writeTimeout = 30 * time.Second
	// lingerTimeout is how long a node has to read why it is sent away.
	lingerTimeout = time.Second
)

// conn is one control connection.
type conn struct {
	channel *channel.Conn
	session *session.Session
	machine ident.MachineKey
	// remote is the address of the node, or of the proxy in front of it.
	remote netip.Addr
	// known gives back the place among the connections of strangers.
	known func()

	// out carries one frame at a time to the writer. The loop sends only when
	// writing is false, so that it never waits.
	out     chan []byte
	writing bool
	// ended means that out was closed.
	ended bool
	// attached is the device that byNode has this connection for.
	attached ident.NodeID
}

// serveControl answers a request for the control channel and serves it until
// its end.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	remote := remoteAddr(r)
	release, ok := s.limits.admit(remote, s.cfg.Now())
	if !ok {
		s.metrics.refusedConns.Inc()
		w.Header().Set("Retry-After", "2")
		http.Error(w, "too many connections; come back later", http.StatusTooManyRequests)
		return
	}
	ch, err := channel.Accept(w, r, channel.ServerConfig{Channel: s.keys.Channel, Network: s.genesis.Fingerprint(), Rand: s.cfg.Rand})
	if err != nil {
		release()
		s.metrics.handshakeErrors.Inc()
		s.cfg.Logger.Debug("no control channel", "remote", remote, "error", err)
		return
	}
	s.serveChannel(r.Context(), ch, remote, release)
}

// serveChannel serves a control channel until its end, and closes it. The loop
// must be running; remote is where the node is, for limits and the log. As soon
// as the node is known, and at the end, release is called.
func (s *Server) serveChannel(ctx context.Context, ch *channel.Conn, remote netip.Addr, release func()) {
	defer ch.Close()
	defer release()
	ctx = context.WithoutCancel(ctx)
	c := &conn{channel: ch, machine: ch.Peer(), remote: remote, known: release, out: make(chan []byte, 1)}
	if err := s.do(ctx, func() { s.attach(c) }); err != nil {
		return
	}
	defer s.handlers.Done()
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(ctx, c)
	}()
	for {
		frame, err := ch.Receive()
		if err != nil {
			s.cfg.Logger.Debug("control connection ended", "machine", c.machine, "remote", remote, "error", err)
			break
		}
		if s.do(ctx, func() { s.handleFrame(c, frame) }) != nil {
			break
		}
	}
	// The writer may be in the middle of a frame that nobody takes.
	ch.Close()
	s.do(ctx, func() { s.detach(c) })
	<-written
}

// write sends the frames that the loop hands over.
func (s *Server) write(ctx context.Context, c *conn) {
	for {
		select {
		case frame, ok := <-c.out:
			if !ok {
				// Everything was said. The node has a moment to read it and
				// close; then the reader's deadline ends the connection.
				c.channel.SetReadDeadline(time.Now().Add(lingerTimeout))
				return
			}
			err := c.channel.SetWriteDeadline(time.Now().Add(writeTimeout))
			if err == nil {
				err = c.channel.Send(frame)
			}
			if err != nil {
				s.cfg.Logger.Debug("control connection does not take frames", "machine", c.machine, "remote", c.remote, "error", err)
				c.channel.Close() // the reader ends and detaches
				return
			}
			if s.doBy(ctx, s.written, func() {
				c.writing = false
				s.dirty[c], s.narrowed[c] = struct{}{}, struct{}{}
			}) != nil {
				return
			}
		case <-s.done:
			return
		}
	}
}

func remoteAddr(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

// attach begins a session. In the loop.
func (s *Server) attach(c *conn) {
	cfg := session.Config{Overlay: []netip.Prefix{s.genesis.Prefix4, s.genesis.Prefix6}}
	if d := s.state.DeviceByMachine(c.machine); d != nil {
		cfg.Node = d.ID
	}
	s.handlers.Add(1) // in the loop, so before Run waits for it
	c.session = session.New(cfg, s.cfg.Now())
	if cfg.Node != 0 {
		c.known()
		c.channel.SetReceiveLimit(wire.MaxClientMessage)
	}
	s.conns[c] = struct{}{}
	if s.state.RevokedMachine(c.machine) {
		s.endSession(c, &wire.Error{Code: wire.CodeRevoked, Message: revokedMessage})
	}
	if s.suspended(cfg.Node) {
		s.endSession(c, suspended())
	}
	if s.ending {
		s.endSession(c, stopping())
	}
}

// suspended reports whether the device's user is.
func (s *Server) suspended(id ident.NodeID) bool {
	d := s.state.Device(id)
	return d != nil && s.state.Suspended(d.Owner)
}

// detach forgets a connection that has ended. In the loop.
func (s *Server) detach(c *conn) {
	delete(s.conns, c)
	delete(s.dirty, c)
	delete(s.foremost, c)
	delete(s.narrowed, c)
	if !c.ended {
		c.ended = true
		close(c.out)
	}
	if s.byNode[c.attached] != c {
		return
	}
	delete(s.byNode, c.attached)
	if s.state.Device(c.attached) == nil {
		return
	}
	now := s.cfg.Now()
	s.seen[c.attached], s.unsaved[c.attached] = now, now
	p := s.network.Presence(c.attached)
	p.Online = false
	s.touch(s.network.SetPresence(c.attached, p))
}

func (s *Server) handleFrame(c *conn, frame []byte) {
	c.session.HandleFrame(frame, s.cfg.Now())
	s.dirty[c] = struct{}{}
}

// pumpsATurn is how many sessions are looked after before the loop asks whether
// something more urgent has come: each may cost a whole map, some milliseconds in
// a network of a thousand devices.
const pumpsATurn = 4

// settle answers requests, tells what changed and hands frames to writers, for
// some of the sessions that wait for it. In the loop, while there are any.
func (s *Server) settle(ctx context.Context) {
	n := 0
	for _, waiting := range []map[*conn]struct{}{s.foremost, s.dirty} {
		for c := range waiting {
			if n++; n > pumpsATurn || s.broken != nil {
				return
			}
			delete(s.foremost, c)
			delete(s.dirty, c)
			s.pump(ctx, c)
		}
	}
}

// tellGone tells sessions whom their nodes must not hold any more, all of them:
// that overtakes the making of maps, which may take seconds where a thousand
// nodes come back at once. In the loop, after each turn.
func (s *Server) tellGone() {
	for c := range s.narrowed {
		delete(s.narrowed, c)
		if _, open := s.conns[c]; !open || c.ended || c.writing {
			continue // the end of the writing asks again
		}
		c.session.FlushGone(s.cfg.Now())
		s.hand(c)
	}
}

// hand gives the writer the session's next frame, if there is one.
func (s *Server) hand(c *conn) bool {
	frame, ok := c.session.NextFrame()
	if !ok {
		return false
	}
	c.writing = true
	s.metrics.framesSent.Inc()
	s.metrics.bytesSent.Add(float64(len(frame)))
	c.out <- frame
	return true
}

func (s *Server) pump(ctx context.Context, c *conn) {
	if _, open := s.conns[c]; !open || c.ended {
		return
	}
	for {
		request, ok := c.session.NextRequest()
		if !ok {
			break
		}
		s.handleRequest(ctx, c, request)
	}
	if c.writing {
		return
	}
	if err := c.session.Flush(s.network, s.cfg.Now()); err != nil {
		s.metrics.viewErrors.Inc()
		s.cfg.Logger.Error("a device cannot be told its map; others are not affected", "error", err)
	}
	switch {
	case s.hand(c):
	case c.session.Closing():
		c.ended = true
		close(c.out)
	default:
		s.schedule(c)
	}
}

func (s *Server) handleRequest(ctx context.Context, c *conn, request session.Request) {
	switch r := request.(type) {
	case session.Register:
		s.register(ctx, c, r)
	case session.Stream:
		s.stream(ctx, c, r)
	case session.Update:
		p := s.network.Presence(c.session.Node())
		p.Endpoints, p.HomeRelay = r.Endpoints, r.HomeRelay
		s.touch(s.network.SetPresence(c.session.Node(), p))
		s.advertise(ctx, c.session.Node(), r.Routes)
	case session.Logout:
		if _, err := s.execute(ctx, c.session.Node().String(), registry.Logout{Node: c.session.Node()}); err != nil {
			s.endSession(c, refusal(err))
			return
		}
		s.endSession(c, &wire.Error{Code: wire.CodeNotRegistered, Message: "this device was logged out"})
	default:
		panic(fmt.Sprintf("BUG: server: unknown request %T", request))
	}
}

func host(h wire.HostInfo) registry.Host {
	return registry.Host{ProgramVersion: h.ProgramVersion, OS: h.OS, OSVersion: h.OSVersion, Architecture: h.Architecture}
}

func (s *Server) register(ctx context.Context, c *conn, r session.Register) {
	cmd := registry.RegisterDevice{
		Machine: c.machine, NodeKey: r.NodeKey, Hostname: r.Hostname, Host: host(r.Host), Tags: r.Tags,
	}
	// Text that is no join key is refused like one that is unknown.
	if key, err := wire.ParseCredential(r.AuthKey); err == nil {
		cmd.Key, cmd.Secret = key.ID, secretHash(key.Secret)
		if k := s.state.Key(key.ID); k != nil && k.User != 0 {
			cmd.Granted = s.network.GrantedTags(k.User, r.Tags)
		}
	}
	var result registry.Result
	err := s.held(c, r.NodeKey, r.Proof)
	if err == nil {
		result, err = s.execute(ctx, c.machine.String(), cmd)
	}
	if err != nil {
		s.metrics.registrations.WithLabelValues("refused").Inc()
		s.endSession(c, refusal(s.recordRefusal(ctx, c, cmd, err)))
		return
	}
	s.metrics.registrations.WithLabelValues("done").Inc()
	c.known()
	c.channel.SetReceiveLimit(wire.MaxClientMessage)
	c.session.Registered(result.Device.ID, result.Device.Name)
}

// held returns an error that wraps registry.ErrInvalid where the device did not
// prove that it holds the private half of the node key.
func (s *Server) held(c *conn, key ident.NodeKey, proof wire.Proof) error {
	if !proof.Shows(key, s.keys.Channel, c.channel.Binding()) {
		return fmt.Errorf("%w: the device does not prove that it holds the node key %s", registry.ErrInvalid, key.Short())
	}
	return nil
}

// recordRefusal writes down that a registration was refused, or counts it where
// there are too many. It returns why the device is sent away: the refusal, or
// that it cannot be recorded.
func (s *Server) recordRefusal(ctx context.Context, c *conn, cmd registry.RegisterDevice, refusal error) error {
	now := s.cfg.Now()
	if s.broken != nil {
		return refusal
	}
	if !s.limits.mayRecord(c.remote, now) {
		s.unrecorded++
		return refusal
	}
	s.cfg.Logger.Info("registration refused", "remote", c.remote, "machine", c.machine, "error", refusal)
	changes := registry.Refused(s.state, c.machine.String(), cmd, refusal, now)
	if err := s.commit(ctx, &changes); err != nil {
		return err
	}
	return refusal
}

// stream begins the stream of maps, or begins it anew.
func (s *Server) stream(ctx context.Context, c *conn, r session.Stream) {
	id := c.session.Node()
	h := host(r.Host)
	err := h.Validate()
	if s.state.RevokedMachine(c.machine) { // since the connection began
		err = registry.ErrRevoked
	}
	if s.suspended(id) {
		err = registry.ErrSuspended
	}
	if d := s.state.Device(id); err == nil && (d == nil || d.NodeKey != r.NodeKey) {
		err = s.held(c, r.NodeKey, r.Proof)
	}
	if err == nil {
		_, err = s.execute(ctx, id.String(), registry.RotateNodeKey{Node: id, NodeKey: r.NodeKey})
	}
	if err != nil {
		s.endSession(c, refusal(err))
		return
	}
	if other := s.byNode[id]; other != nil && other != c {
		s.endSession(other, &wire.Error{Code: wire.CodeReplaced, Message: "the same device connected again"})
	}
	s.byNode[id], c.attached = c, id
	s.touch(s.network.SetPresence(id, netmap.Presence{Online: true, Endpoints: r.Endpoints, OS: h.OS, HomeRelay: r.HomeRelay}))
	s.advertise(ctx, id, r.Routes)
	if err := c.session.Begin(s.network, s.cfg.Now()); err != nil {
		s.metrics.viewErrors.Inc()
		s.cfg.Logger.Error("a device cannot be told its map; others are not affected", "error", err)
	}
}

// advertise records what a device offers to route. An offer that makes no sense
// changes nothing, and does not end the connection: the node's other business
// has nothing to do with it.
func (s *Server) advertise(ctx context.Context, id ident.NodeID, routes []netip.Prefix) {
	if _, err := s.execute(ctx, id.String(), registry.AdvertiseRoutes{Node: id, Routes: routes}); err != nil {
		s.cfg.Logger.Warn("a device's routes are not taken over", "device", id, "error", err)
	}
}
