package wg

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/netstack/sock"
)

// TUN is what the device reads packets to seal from and writes opened packets
// to; netstack/tun.Device without what only its owner needs.
type TUN interface {
	Read(bufs [][]byte, sizes []int, offset int) (n int, err error)
	Write(bufs [][]byte, offset int) (int, error)
	MTU() (int, error)
	Name() (string, error)
	BatchSize() int
	Close() error
}

// Config is what a Device needs.
type Config struct {
	// TUN is owned by the device and closed with it.
	TUN TUN
	// Listen opens the UDP port; zero lets the system choose. It is called by
	// New and by Rebind.
	Listen func(port uint16) (sock.Conn, error)
	// ListenFurther opens another UDP port, any that is free, for OpenSocket; nil
	// for none. It is called for hundreds of ports at a time, which must be light.
	ListenFurther func() (sock.Conn, error)
	// Port is what Listen is asked for first.
	Port uint16
	// Control takes every received packet that is not WireGuard's. It is called
	// by several goroutines, must not block, and must not keep the packet.
	Control func(packet []byte, from netip.AddrPort)
	// Unwrap, if not nil, takes packets out of a relay's datagrams: it is given
	// every received packet that is not WireGuard's, and returns the relay, what it
	// carries, which aliases it, and who sent that by the relay's word; ok is false
	// for what is no relay's. It keeps for itself what is not WireGuard's, and returns
	// an empty packet then. It is called by several goroutines for every packet
	// that comes so, and must not block.
	Unwrap func(datagram []byte, from netip.AddrPort) (over Relay, peer ident.NodeKey, packet []byte, ok bool)
	// NoPath, if not nil, is told that a handshake message to the peer has to
	// wait for a path. It must not block.
	NoPath func(key ident.NodeKey)
	Logger *slog.Logger
	// Retain, if not nil, is given every object of the implementation that must
	// outlive a testing/synctest bubble; see the package documentation. It is
	// for tests only.
	Retain func(object any)
}

// PeerConfig is a peer that a device shall have.
type PeerConfig struct {
	Key ident.NodeKey
	// AllowedIPs are where packets of the peer may come from, and which packets
	// go to it. One prefix belongs to one peer.
	AllowedIPs []netip.Prefix
}

// MaxPeers is how many peers a device takes.
const MaxPeers = device.MaxPeers

const (
	logRate  = 1 // per second
	logBurst = 10
)

var (
	// ErrTooManyPeers is returned by SetPeers for more than MaxPeers peers.
	ErrTooManyPeers = errors.New("wg: too many peers")
	// ErrPeer is wrapped by errors of SetPeers about a peer that can not be.
	ErrPeer = errors.New("wg: impossible peer")
)

// Device is a WireGuard device that is up. All methods may be called
// concurrently.
type Device struct {
	device *device.Device
	bind   *bind
	tun    *adapter
	log    *slog.Logger
	logs   limiter
	retain func(any)

	mu    sync.Mutex // protects all below, and orders changes
	peers map[ident.NodeKey][]netip.Prefix
}

// New makes a device without key or peers, opens its port and starts it. The
// error is Listen's; cfg.TUN is then closed.
func New(cfg Config) (*Device, error) {
	b := newBind(&cfg)
	d := &Device{
		bind: b, tun: newAdapter(cfg.TUN, b), log: cfg.Logger, retain: cfg.Retain,
		logs:  newLimiter(logRate, logBurst),
		peers: make(map[ident.NodeKey][]netip.Prefix),
	}
	d.device = device.NewDevice(d.tun, d.bind, &device.Logger{
		Verbosef: d.bind.counters.verbosef,
		Errorf:   d.logf,
	})
	if d.retain != nil {
		d.retain(d.device)
	}
	err := d.device.IpcSet(fmt.Sprintf("listen_port=%d\n", cfg.Port))
	if err == nil {
		err = d.device.Up()
	}
	if err != nil {
		d.device.Close()
		return nil, fmt.Errorf("wg: opening the port: %w", err)
	}
	return d, nil
}

// logf logs what the implementation reports as an error. It does so for each
// batch of packets that can not be delivered, so most are left out then.
func (d *Device) logf(format string, args ...any) {
	if !d.logs.allow(time.Now()) {
		return
	}
	d.log.Warn("wireguard", "message", fmt.Sprintf(format, args...))
}

// Close ends the tunnels with all peers, closes the port and the TUN device,
// and returns when nothing of the device runs any more.
func (d *Device) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.peers {
		d.drop(key)
	}
	d.bind.endFurther()
	d.device.Close()
}

// Port returns the UDP port, 0 while there is none.
func (d *Device) Port() uint16 {
	if o := d.bind.current.Load(); o != nil {
		return o.conn.LocalPort()
	}
	return 0
}

// Rebind closes the sockets and opens new ones: on the same port, or on any
// where that is taken. Sessions go on. The error is Config.Listen's; there is
// then no port.
func (d *Device) Rebind() error {
	err := d.device.BindUpdate()
	if err == nil {
		return nil
	}
	d.log.Warn("reopening the UDP port", "error", err)
	if err := d.device.BindUpdate(); err != nil { // the device forgot the port
		return fmt.Errorf("wg: reopening the port: %w", err)
	}
	return nil
}

// SetPrivateKey sets the device's key. Sessions made with another one end.
func (d *Device) SetPrivateKey(key ident.NodePrivate) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := newIdentity(key)
	if old := d.bind.identity.Load(); old != nil && old.public == id.public {
		return nil
	}
	if _, taken := d.peers[id.public]; taken {
		return fmt.Errorf("%w: %s is this device's own key", ErrPeer, id.public.Short())
	}
	if err := d.device.SetPrivateKey(device.NoisePrivateKey(key.SecretBytes())); err != nil {
		return fmt.Errorf("wg: setting the private key: %w", err)
	}
	d.bind.identity.Store(id)
	return nil
}

// SetPeers makes peers the device's peers. Those that are not among them are
// removed first: their keys are zeroed when SetPeers returns, and nothing of
// theirs can be opened any more. Peers that stay keep their sessions and paths.
//
// The error wraps ErrTooManyPeers or ErrPeer, and nothing has changed then; or
// it is the implementation's, and the peers that are not among the wanted ones
// are gone, but not all of those may be there.
func (d *Device) SetPeers(peers []PeerConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := make(map[ident.NodeKey][]netip.Prefix, len(peers))
	if len(peers) > MaxPeers {
		return fmt.Errorf("%w: %d of %d", ErrTooManyPeers, len(peers), MaxPeers)
	}
	self := d.bind.identity.Load()
	for _, p := range peers {
		if _, twice := wanted[p.Key]; twice || p.Key.IsZero() || self != nil && p.Key == self.public {
			return fmt.Errorf("%w: key %s is repeated, empty or our own", ErrPeer, p.Key.Short())
		}
		wanted[p.Key] = slices.Clone(p.AllowedIPs)
	}
	for key := range d.peers {
		if _, stays := wanted[key]; !stays {
			d.drop(key)
		}
	}
	var text strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(wanted), compareKeys) {
		allowed := wanted[key]
		before, known := d.peers[key]
		if known && slices.Equal(before, allowed) {
			continue
		}
		digits := hex.EncodeToString(key[:])
		fmt.Fprintf(&text, "public_key=%s\n", digits)
		if !known {
			p := newPeer(key, d.bind)
			d.bind.mu.Lock()
			d.bind.peers[key] = p
			d.bind.mu.Unlock()
			fmt.Fprintf(&text, "endpoint=%s\n", digits)
		}
		text.WriteString("replace_allowed_ips=true\n")
		for _, prefix := range allowed {
			fmt.Fprintf(&text, "allowed_ip=%v\n", prefix)
		}
		d.peers[key] = allowed
	}
	if text.Len() == 0 {
		return nil
	}
	if err := d.device.IpcSet(text.String()); err != nil {
		return fmt.Errorf("wg: setting peers: %w", err)
	}
	if d.retain != nil {
		for key := range d.peers {
			d.retain(d.device.LookupPeer(device.NoisePublicKey(key)))
		}
	}
	return nil
}

// RemovePeer removes one peer, as SetPeers would.
func (d *Device) RemovePeer(key ident.NodeKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.peers[key]; known {
		d.drop(key)
	}
}

// drop removes a peer; d.mu is held.
func (d *Device) drop(key ident.NodeKey) {
	p := d.bind.peer(key)
	d.bind.counters.replayed.take(d.device.LookupPeer(device.NoisePublicKey(key)))
	d.device.RemovePeer(device.NoisePublicKey(key))
	d.bind.mu.Lock()
	delete(d.bind.peers, key)
	d.bind.mu.Unlock()
	d.bind.indexes.forget(p)
	p.SetPath(Path{})
	delete(d.peers, key)
}

// Peer returns the peer with the key, nil where there is none.
func (d *Device) Peer(key ident.NodeKey) *Peer { return d.bind.peer(key) }

// BeginHandshake begins a handshake with the peer without a packet for it, so
// that a peer that still has a session learns that it is over. It does nothing
// where there is no such peer, or where one was begun less than 5 s ago.
func (d *Device) BeginHandshake(key ident.NodeKey) error {
	p := d.device.LookupPeer(device.NoisePublicKey(key))
	if p == nil {
		return nil
	}
	if err := p.SendHandshakeInitiation(false); err != nil {
		return fmt.Errorf("wg: beginning a handshake: %w", err)
	}
	return nil
}

// Renew has a session made with the peer over its path of now: it begins a handshake,
// or sends the last message of one that is under way again. It does nothing where there
// is no such peer.
func (d *Device) Renew(key ident.NodeKey) error {
	p := d.bind.peer(key)
	if p == nil {
		return nil
	}
	if path := p.path.Load(); path.Direct.IsValid() || path.Relay != nil {
		p.sendAgain(path)
	}
	return d.BeginHandshake(key)
}

// HandleRelayed takes a packet that a relay says was sent by the peer with the
// key, and reports whether it is WireGuard's. The packet is not kept.
func (d *Device) HandleRelayed(over Relay, from ident.NodeKey, packet []byte) bool {
	return d.bind.handleRelayed(over, from, packet)
}

// SendControl sends a packet that is not WireGuard's from the device's port. The
// packet is not kept. The error is net.ErrClosed where there is no port, or the
// socket's.
func (d *Device) SendControl(packet []byte, to netip.AddrPort) error {
	o := d.bind.current.Load()
	if o == nil {
		return net.ErrClosed
	}
	return o.conn.WriteBatch([][]byte{packet}, to)
}

// SendDatagrams sends packets from the device's port to a relay, in one batch.
// They are not kept. It blocks while the socket's buffer is full. The error is
// net.ErrClosed where there is no port, or the socket's.
func (d *Device) SendDatagrams(packets [][]byte, to netip.AddrPort) error {
	o := d.bind.current.Load()
	if o == nil {
		return net.ErrClosed
	}
	err := o.conn.WriteBatch(packets, to)
	if err != nil {
		d.bind.counters.sendErrors.Add(1)
	}
	return err
}

// NotifyMTU tells the device that the MTU of its TUN device has changed.
func (d *Device) NotifyMTU() { d.tun.notifyMTU() }

// Counters returns what the device counted.
func (d *Device) Counters() Counters { return d.bind.counters.snapshot() }

func compareKeys(a, b ident.NodeKey) int { return slices.Compare(a[:], b[:]) }
