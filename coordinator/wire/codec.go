package wire

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/wire/wirepb"
)

// ErrMalformed is wrapped by every error of a Decode function.
var ErrMalformed = errors.New("wire: malformed message")

// Limits on what a message may hold. They bound what a sender can cost a
// receiver; a message over one is malformed.
const (
	// MaxClientMessage is the longest message of a node in bytes: a name, a
	// key and MaxEndpoints addresses fit with room to spare.
	MaxClientMessage = 64 << 10
	// MaxServerMessage is the longest message of a coordinator in bytes: a
	// full map of 65,536 peers at 500 bytes each.
	MaxServerMessage = 32 << 20
	// MaxEndpoints is how many endpoints a node may have.
	MaxEndpoints = 32
	// MaxRoutes is how many prefixes a node may offer to route.
	MaxRoutes = 256
	// maxTags is how many tags a node may ask for.
	maxTags = 64
	// maxText is the longest text in bytes: host names, versions, messages.
	maxText = 1024
	// maxSettings is how many relays, STUN servers or users a map may name.
	maxSettings = 1 << 16
)

// EncodeClient returns the encoding of m.
func EncodeClient(m ClientMessage) []byte {
	out := &wirepb.ClientMessage{}
	switch m := m.(type) {
	case Hello:
		out.Message = &wirepb.ClientMessage_Hello{Hello: &wirepb.Hello{Version: uint32(m.Version), Host: &wirepb.HostInfo{
			ProgramVersion: m.Host.ProgramVersion, Os: m.Host.OS, OsVersion: m.Host.OSVersion, Architecture: m.Host.Architecture,
		}}}
	case Register:
		tags := make([]string, 0, len(m.Tags))
		for _, t := range m.Tags {
			tags = append(tags, string(t))
		}
		out.Message = &wirepb.ClientMessage_Register{Register: &wirepb.Register{
			AuthKey: m.AuthKey, NodeKey: m.NodeKey[:], Hostname: m.Hostname, Tags: tags, Proof: m.Proof[:],
		}}
	case MapRequest:
		out.Message = &wirepb.ClientMessage_MapRequest{MapRequest: &wirepb.MapRequest{
			NodeKey: m.NodeKey[:], Endpoints: endpointsOut(m.Endpoints), HaveSequence: m.HaveSequence, HaveHash: m.HaveHash[:],
			Routes: prefixesOut(m.Routes), Proof: m.Proof[:], HomeRelay: m.HomeRelay,
		}}
	case Update:
		out.Message = &wirepb.ClientMessage_Update{Update: &wirepb.Update{
			Endpoints: endpointsOut(m.Endpoints), Routes: prefixesOut(m.Routes), HomeRelay: m.HomeRelay,
		}}
	case Pong:
		out.Message = &wirepb.ClientMessage_Pong{Pong: &wirepb.Pong{Number: m.Number}}
	case Logout:
		out.Message = &wirepb.ClientMessage_Logout{Logout: &wirepb.Logout{}}
	default:
		panic(fmt.Sprintf("BUG: wire: unknown client message %T", m))
	}
	return marshal(out)
}

// EncodeServer returns the encoding of m.
func EncodeServer(m ServerMessage) []byte {
	out := &wirepb.ServerMessage{}
	switch m := m.(type) {
	case Welcome:
		out.Message = &wirepb.ServerMessage_Welcome{Welcome: &wirepb.Welcome{
			Version: uint32(m.Version), TimeUnixMs: m.Time.UnixMilli(), Registered: m.Registered,
		}}
	case Registered:
		out.Message = &wirepb.ServerMessage_Registered{Registered: &wirepb.Registered{Node: uint64(m.Node), Name: m.Name}}
	case *Map:
		hash := m.Hash()
		out.Message = &wirepb.ServerMessage_Map{Map: &wirepb.Map{
			Sequence: m.Sequence, Hash: hash[:], SelfCertificate: m.Self, Rules: m.Rules,
			Peers: peersOut(m.Peers), Settings: settingsOut(&m.Settings), RelayToken: m.RelayToken,
			Candidate: m.Candidate,
		}}
	case *Delta:
		d := &wirepb.Delta{
			BaseSequence: m.BaseSequence, BaseHash: m.BaseHash[:], Sequence: m.Sequence, Hash: m.Hash[:],
			SelfCertificate: m.Self, Rules: m.Rules, Upserts: peersOut(m.Upserts), RelayToken: m.RelayToken,
			Candidate: m.Candidate, NoCandidate: m.NoCandidate,
		}
		for _, id := range m.Removed {
			d.Removed = append(d.Removed, uint64(id))
		}
		for _, p := range m.Patches {
			d.Patches = append(d.Patches, &wirepb.PeerPatch{Node: uint64(p.Node), State: stateOut(p.State)})
		}
		if m.Settings != nil {
			d.Settings = settingsOut(m.Settings)
		}
		out.Message = &wirepb.ServerMessage_Delta{Delta: d}
	case Ping:
		out.Message = &wirepb.ServerMessage_Ping{Ping: &wirepb.Ping{Number: m.Number}}
	case *Error:
		out.Message = &wirepb.ServerMessage_Error{Error: &wirepb.Error{
			Code: wirepb.Code(m.Code), Message: m.Message, RetryAfterMs: uint32(m.RetryAfter.Milliseconds()),
		}}
	default:
		panic(fmt.Sprintf("BUG: wire: unknown server message %T", m))
	}
	return marshal(out)
}

func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// The only cause is text that is not UTF-8, which callers have checked.
		panic("BUG: wire: " + err.Error())
	}
	return b
}

// DecodeClient reads a node's message. The error wraps ErrMalformed.
func DecodeClient(b []byte) (ClientMessage, error) {
	if len(b) > MaxClientMessage {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(b), MaxClientMessage)
	}
	var in wirepb.ClientMessage
	if err := proto.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	d := &decoder{}
	var out ClientMessage
	switch m := in.Message.(type) {
	case *wirepb.ClientMessage_Hello:
		h := m.Hello.GetHost()
		out = Hello{Version: Version(m.Hello.GetVersion()), Host: HostInfo{
			ProgramVersion: d.text(h.GetProgramVersion()), OS: d.text(h.GetOs()),
			OSVersion: d.text(h.GetOsVersion()), Architecture: d.text(h.GetArchitecture()),
		}}
	case *wirepb.ClientMessage_Register:
		r := Register{AuthKey: d.text(m.Register.GetAuthKey()), Hostname: d.text(m.Register.GetHostname())}
		d.fixed(r.NodeKey[:], m.Register.GetNodeKey())
		d.fixed(r.Proof[:], m.Register.GetProof())
		d.count("tags", len(m.Register.GetTags()), maxTags)
		for _, t := range m.Register.GetTags() {
			if !ident.Tag(t).Valid() {
				d.fail("%q is not a tag", t)
			}
			r.Tags = append(r.Tags, ident.Tag(t))
		}
		out = r
	case *wirepb.ClientMessage_MapRequest:
		r := MapRequest{Endpoints: d.endpoints(m.MapRequest.GetEndpoints()), HaveSequence: m.MapRequest.GetHaveSequence(), Routes: d.prefixes(m.MapRequest.GetRoutes()), HomeRelay: d.relayName(m.MapRequest.GetHomeRelay())}
		d.fixed(r.NodeKey[:], m.MapRequest.GetNodeKey())
		d.fixed(r.HaveHash[:], m.MapRequest.GetHaveHash())
		d.fixed(r.Proof[:], m.MapRequest.GetProof())
		out = r
	case *wirepb.ClientMessage_Update:
		out = Update{Endpoints: d.endpoints(m.Update.GetEndpoints()), Routes: d.prefixes(m.Update.GetRoutes()), HomeRelay: d.relayName(m.Update.GetHomeRelay())}
	case *wirepb.ClientMessage_Pong:
		out = Pong{Number: m.Pong.GetNumber()}
	case *wirepb.ClientMessage_Logout:
		out = Logout{}
	default:
		d.fail("unknown kind of message")
	}
	if d.err != nil {
		return nil, d.err
	}
	return out, nil
}

// DecodeServer reads a coordinator's message. A Map whose hash is not that of
// its content is malformed. The error wraps ErrMalformed.
func DecodeServer(b []byte) (ServerMessage, error) {
	if len(b) > MaxServerMessage {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(b), MaxServerMessage)
	}
	var in wirepb.ServerMessage
	if err := proto.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	d := &decoder{}
	var out ServerMessage
	switch m := in.Message.(type) {
	case *wirepb.ServerMessage_Welcome:
		out = Welcome{
			Version: Version(m.Welcome.GetVersion()), Time: time.UnixMilli(m.Welcome.GetTimeUnixMs()).UTC(),
			Registered: m.Welcome.GetRegistered(),
		}
	case *wirepb.ServerMessage_Registered:
		out = Registered{Node: ident.NodeID(m.Registered.GetNode()), Name: d.text(m.Registered.GetName())}
	case *wirepb.ServerMessage_Map:
		full := &Map{
			Sequence: m.Map.GetSequence(), Self: m.Map.GetSelfCertificate(), Rules: m.Map.GetRules(),
			Peers: d.peers(m.Map.GetPeers()), Settings: d.settings(m.Map.GetSettings()), RelayToken: m.Map.GetRelayToken(),
			Candidate: nonEmpty(m.Map.GetCandidate()),
		}
		var hash Hash
		d.fixed(hash[:], m.Map.GetHash())
		if d.err == nil && full.Hash() != hash {
			d.fail("a map whose hash is not that of its content")
		}
		out = full
	case *wirepb.ServerMessage_Delta:
		out = d.delta(m.Delta)
	case *wirepb.ServerMessage_Ping:
		out = Ping{Number: m.Ping.GetNumber()}
	case *wirepb.ServerMessage_Error:
		out = &Error{
			Code: Code(m.Error.GetCode()), Message: d.text(m.Error.GetMessage()),
			RetryAfter: time.Duration(m.Error.GetRetryAfterMs()) * time.Millisecond,
		}
	default:
		d.fail("unknown kind of message")
	}
	if d.err != nil {
		return nil, d.err
	}
	return out, nil
}

// decoder keeps the first error, so that a conversion reads in one piece.
type decoder struct{ err error }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

// text refuses what could do more than be read: it reaches terminals, logs and
// web pages on the other side. A message may have several lines.
func (d *decoder) text(s string) string {
	if len(s) > maxText {
		d.fail("text of %d bytes, at most %d are allowed", len(s), maxText)
	}
	for _, c := range s {
		if c != '\n' && !unicode.IsGraphic(c) {
			d.fail("text with the unprintable character %U", c)
			break
		}
	}
	return s
}

// relayName reads the name of a relay, or none.
func (d *decoder) relayName(s string) string {
	if s != "" && !validLabel(s) {
		d.fail("%q is no name of a relay", s)
	}
	return s
}

func (d *decoder) count(what string, n, limit int) {
	if n > limit {
		d.fail("%d %s, at most %d are allowed", n, what, limit)
	}
}

// fixed copies src to dst. An absent value leaves dst zero.
func (d *decoder) fixed(dst, src []byte) {
	if len(src) != 0 && len(src) != len(dst) {
		d.fail("%d bytes where %d are wanted", len(src), len(dst))
		return
	}
	copy(dst, src)
}

func (d *decoder) endpoints(in []*wirepb.Endpoint) []netip.AddrPort {
	d.count("endpoints", len(in), MaxEndpoints)
	if d.err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, e := range in {
		a, ok := netip.AddrFromSlice(e.GetAddress())
		if !ok || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || e.GetPort() == 0 || e.GetPort() > 65535 {
			d.fail("%v port %d is no endpoint", a, e.GetPort())
			return nil
		}
		out = append(out, netip.AddrPortFrom(a, uint16(e.GetPort())))
	}
	return out
}

func (d *decoder) prefixes(in []*wirepb.Prefix) []netip.Prefix {
	d.count("routes", len(in), MaxRoutes)
	if d.err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, p := range in {
		a, ok := netip.AddrFromSlice(p.GetAddress())
		if !ok || a.Is4In6() || p.GetBits() > uint32(a.BitLen()) {
			d.fail("%v/%d is no prefix", a, p.GetBits())
			return nil
		}
		prefix := netip.PrefixFrom(a, int(p.GetBits()))
		if prefix != prefix.Masked() {
			d.fail("%v has bits beyond its length", prefix)
			return nil
		}
		out = append(out, prefix)
	}
	return out
}

func (d *decoder) state(in *wirepb.PeerState) PeerState {
	return PeerState{Endpoints: d.endpoints(in.GetEndpoints()), Online: in.GetOnline(), OS: d.text(in.GetOs()), HomeRelay: d.text(in.GetHomeRelay())}
}

func (d *decoder) peers(in []*wirepb.Peer) map[ident.NodeID]Peer {
	out := make(map[ident.NodeID]Peer, len(in))
	for _, p := range in {
		id := ident.NodeID(p.GetNode())
		if _, twice := out[id]; twice || id == 0 {
			d.fail("peer %v twice or without id", id)
		}
		if len(p.GetCertificate()) == 0 {
			d.fail("peer %v without a certificate", id)
		}
		out[id] = Peer{Certificate: p.GetCertificate(), State: d.state(p.GetState())}
	}
	return out
}

func (d *decoder) settings(in *wirepb.Settings) Settings {
	var out Settings
	d.count("relays", len(in.GetRelays()), maxSettings)
	d.count("STUN servers", len(in.GetStun()), maxSettings)
	d.count("users", len(in.GetUsers()), maxSettings)
	d.count("features", len(in.GetOff()), MaxFeatures)
	if d.err != nil {
		return out
	}
	for _, r := range in.GetRelays() {
		out.Relays = append(out.Relays, Relay{
			Name: d.text(r.GetName()), Region: d.text(r.GetRegion()), URL: d.text(r.GetUrl()), UDP: d.text(r.GetUdp()), STUN: d.text(r.GetStun()),
		})
	}
	for _, s := range in.GetStun() {
		out.STUN = append(out.STUN, d.text(s))
	}
	for _, u := range in.GetUsers() {
		out.Users = append(out.Users, User{ID: ident.UserID(u.GetId()), Login: d.text(u.GetLogin())})
	}
	last := Feature(0)
	for _, number := range in.GetOff() {
		f := Feature(number)
		if f <= last {
			d.fail("features that are off out of order")
			return out
		}
		out.Off, last = append(out.Off, f), f
	}
	return out
}

func (d *decoder) delta(in *wirepb.Delta) *Delta {
	out := &Delta{
		BaseSequence: in.GetBaseSequence(), Sequence: in.GetSequence(),
		Self: nonEmpty(in.GetSelfCertificate()), Rules: nonEmpty(in.GetRules()),
		Upserts: d.peers(in.GetUpserts()), RelayToken: nonEmpty(in.GetRelayToken()),
		Candidate: nonEmpty(in.GetCandidate()), NoCandidate: in.GetNoCandidate(),
	}
	if out.Candidate != nil && out.NoCandidate {
		d.fail("a candidate, and none any more")
	}
	d.fixed(out.BaseHash[:], in.GetBaseHash())
	d.fixed(out.Hash[:], in.GetHash())
	for _, id := range in.GetRemoved() {
		out.Removed = append(out.Removed, ident.NodeID(id))
	}
	for _, p := range in.GetPatches() {
		out.Patches = append(out.Patches, PeerPatch{Node: ident.NodeID(p.GetNode()), State: d.state(p.GetState())})
	}
	if in.GetSettings() != nil {
		settings := d.settings(in.GetSettings())
		out.Settings = &settings
	}
	return out
}

func nonEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func endpointsOut(in []netip.AddrPort) []*wirepb.Endpoint {
	var out []*wirepb.Endpoint
	for _, e := range in {
		out = append(out, &wirepb.Endpoint{Address: e.Addr().Unmap().AsSlice(), Port: uint32(e.Port())})
	}
	return out
}

func prefixesOut(in []netip.Prefix) []*wirepb.Prefix {
	var out []*wirepb.Prefix
	for _, p := range in {
		out = append(out, &wirepb.Prefix{Address: p.Addr().AsSlice(), Bits: uint32(p.Bits())})
	}
	return out
}

func stateOut(in PeerState) *wirepb.PeerState {
	return &wirepb.PeerState{Endpoints: endpointsOut(in.Endpoints), Online: in.Online, Os: in.OS, HomeRelay: in.HomeRelay}
}

func peersOut(in map[ident.NodeID]Peer) []*wirepb.Peer {
	var out []*wirepb.Peer
	for _, id := range slices.Sorted(maps.Keys(in)) {
		out = append(out, &wirepb.Peer{Node: uint64(id), Certificate: in[id].Certificate, State: stateOut(in[id].State)})
	}
	return out
}

func settingsOut(in *Settings) *wirepb.Settings {
	out := &wirepb.Settings{Stun: in.STUN}
	for _, r := range in.Relays {
		out.Relays = append(out.Relays, &wirepb.Relay{Name: r.Name, Region: r.Region, Url: r.URL, Udp: r.UDP, Stun: r.STUN})
	}
	for _, u := range in.Users {
		out.Users = append(out.Users, &wirepb.User{Id: uint64(u.ID), Login: u.Login})
	}
	for _, f := range in.Off {
		out.Off = append(out.Off, wirepb.Feature(f))
	}
	return out
}
