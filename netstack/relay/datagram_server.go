package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/warren-overlay/warren/acl/ident"
)

const (
	// cookieLife is how long a cookie counts, at least; at most twice as long. An
	// answer takes one round trip.
	cookieLife = 5 * time.Second
	// datagramWait is after how much silence packets for a client go by the
	// stream: it binds its address anew every 15 s.
	datagramWait = 60 * time.Second
	// maxStale bounds the answers to packets of unknown addresses, per second.
	// They are hints, and as many forged ones must not become a load.
	maxStale = 1000
	// resolveRate bounds the numbers that one client may ask for, per second;
	// resolveBurst is what a router may ask for at once when it comes back.
	resolveRate  = 100
	resolveBurst = 1000
	// numberAttempts bounds how often a number is drawn that is taken. With 10,000
	// of 2^32 taken, one in 400,000 is.
	numberAttempts = 64
	// maxRetired bounds the numbers of connections that ended which are still
	// known, some 100 bytes each: those of as many peers as one client keeps. The
	// oldest makes room; packets to it are lost, and their sender is told.
	maxRetired = maxPeers
)

// datagrams is what a server has for those of its connections that use them.
type datagrams struct {
	secret   [sha256.Size]byte // makes the cookies
	byNumber map[uint32]*conn
	bySource map[netip.AddrPort]*conn
	// from and to are what was looked up last, for packets come in runs; nil where
	// that may not hold any more.
	from, to *conn
	stale    int // answers in the second that began at staleAt
	staleAt  time.Time
	share    fairShare
	retired  retired
}

// datagramState is what one connection has of it.
type datagramState struct {
	key      []byte
	number   uint32
	tag      tag
	source   netip.AddrPort // where its packets go; zero for the stream
	sequence uint64         // of the last message that bound an address
	heard    time.Time      // of the last message that bound an address
	resolves bucket
	window   senderWindow
}

func newDatagrams(rand io.Reader) (*datagrams, error) {
	d := &datagrams{
		byNumber: make(map[uint32]*conn), bySource: make(map[netip.AddrPort]*conn),
		share: fairShare{window: 1},
	}
	if _, err := io.ReadFull(rand, d.secret[:]); err != nil {
		return nil, fmt.Errorf("relay: drawing the secret of cookies: %w", err)
	}
	return d, nil
}

// offerDatagrams gives a connection that was just admitted a number, and tells
// it. Without random bytes it goes on without.
func (s *Server) offerDatagrams(c *conn, key []byte) {
	var raw [4 + tagSize]byte
	for range numberAttempts {
		if _, err := io.ReadFull(s.cfg.Rand, raw[:]); err != nil {
			return
		}
		number := binary.BigEndian.Uint32(raw[:])
		if number == 0 || s.datagrams.byNumber[number] != nil || s.datagrams.retired.has(number) {
			continue
		}
		c.datagrams = &datagramState{key: key, number: number, tag: tag(raw[4:]), resolves: newBucketOf(resolveRate, resolveBurst, s.now)}
		s.datagrams.byNumber[number] = c
		s.control(c, FrameDatagrams, raw[:])
		return
	}
}

// dropDatagrams takes a connection out of the indexes.
func (s *Server) dropDatagrams(c *conn) {
	if c.datagrams == nil {
		return
	}
	s.unbind(c)
	delete(s.datagrams.byNumber, c.datagrams.number)
	s.datagrams.retired.add(c.datagrams.number, c.member)
	s.datagrams.from, s.datagrams.to = nil, nil
	c.datagrams = nil
}

func (s *Server) unbind(c *conn) {
	if d := c.datagrams; d != nil && d.source.IsValid() {
		delete(s.datagrams.bySource, d.source)
		s.datagrams.from = nil
		d.source = netip.AddrPort{}
	}
}

// cookie returns what only the owner of an address can know at a time, for one
// connection and one attempt.
func (s *Server) cookie(from netip.AddrPort, number uint32, sequence uint64, slot int64) []byte {
	var text [16 + 2 + 4 + 8 + 8]byte
	a := from.Addr().As16()
	copy(text[:], a[:])
	binary.BigEndian.PutUint16(text[16:], from.Port())
	binary.BigEndian.PutUint32(text[18:], number)
	binary.BigEndian.PutUint64(text[22:], sequence)
	binary.BigEndian.PutUint64(text[30:], uint64(slot))
	mac := hmac.New(sha256.New, s.datagrams.secret[:])
	mac.Write(text[:])
	return mac.Sum(nil)[:cookieSize]
}

func cookieSlot(now time.Time) int64 { return now.UnixNano() / int64(cookieLife) }

// HandleDatagram takes one datagram and returns what is to be sent for it, and
// where; to is invalid for nothing. What is sent lies in the storage of what
// came and is never longer, whoever sent it (F16): the answer to an address
// that proved nothing included. A packet for a member without datagrams is
// queued on its connection. The server does not keep the datagram.
func (s *Server) HandleDatagram(from netip.AddrPort, b []byte, now time.Time) (to netip.AddrPort, out []byte) {
	s.clock(now)
	if s.datagrams == nil || !IsDatagram(b) {
		s.stats.DatagramsUnknown++
		return netip.AddrPort{}, nil
	}
	switch b[0] {
	case datagramData:
		return s.forwardDatagram(from, b)
	case datagramOpen:
		return s.openDatagrams(from, b)
	case datagramBind:
		return s.bindDatagrams(from, b)
	}
	s.stats.DatagramsUnknown++
	return netip.AddrPort{}, nil
}

// claimed returns the connection in whose name a message of the exchange is,
// where it proves that it is of it.
func (s *Server) claimed(b []byte) *conn {
	if len(b) == bindSize {
		t, number := readHeader(b)
		if c := s.datagrams.byNumber[number]; c != nil && c.datagrams.tag == t && authentic(b, c.datagrams.key) {
			return c
		}
	}
	s.stats.DatagramsForged++
	return nil
}

func (s *Server) openDatagrams(from netip.AddrPort, b []byte) (netip.AddrPort, []byte) {
	c := s.claimed(b)
	if c == nil {
		return netip.AddrPort{}, nil
	}
	sequence := readSequence(b)
	if sequence <= c.datagrams.sequence {
		s.stats.DatagramsReplayed++
		return netip.AddrPort{}, nil
	}
	cookie := s.cookie(from, c.datagrams.number, sequence, cookieSlot(s.now))
	return from, writeBinding(b, datagramCookie, c.datagrams.tag, c.datagrams.number, sequence, cookie, c.datagrams.key)
}

func (s *Server) bindDatagrams(from netip.AddrPort, b []byte) (netip.AddrPort, []byte) {
	// Padding says nothing but that the path carries so much; the answer is short.
	c := s.claimed(b[:min(len(b), bindSize)])
	if c == nil {
		return netip.AddrPort{}, nil
	}
	d := c.datagrams
	sequence := readSequence(b)
	repeated := sequence == d.sequence && from == d.source // its answer was lost
	if sequence <= d.sequence && !repeated {
		s.stats.DatagramsReplayed++
		return netip.AddrPort{}, nil
	}
	slot := cookieSlot(s.now)
	fresh := hmac.Equal(readCookie(b), s.cookie(from, d.number, sequence, slot)) ||
		hmac.Equal(readCookie(b), s.cookie(from, d.number, sequence, slot-1))
	if !fresh {
		s.stats.DatagramsReplayed++
		return netip.AddrPort{}, nil
	}
	if d.source != from {
		s.unbind(c)
		if other := s.datagrams.bySource[from]; other != nil {
			// A NAT gave the address to somebody else, who has just proved it.
			s.unbind(other)
		}
		d.source = from
		s.datagrams.bySource[from] = c
		s.stats.DatagramsBound++
	}
	d.sequence, d.heard = sequence, s.now
	s.heard(c)
	return from, writeBinding(b, datagramBound, d.tag, d.number, sequence, nil, d.key)
}

// HandleDatagrams is HandleDatagram for datagrams that came one behind the other
// from one address, and looks up but once what they have in common. It handles
// some from the front, at least one, and returns how many, and what is to be sent
// for them and where; to is invalid for nothing. out aliases datagrams, whose
// elements it may replace. A shell goes on with the rest; there must be one.
func (s *Server) HandleDatagrams(from netip.AddrPort, datagrams [][]byte, now time.Time) (to netip.AddrPort, out [][]byte, handled int) {
	s.clock(now)
	if s.datagrams != nil && IsDatagramPacket(datagrams[0]) {
		if to, out, handled = s.forwardRun(from, datagrams); handled > 0 {
			return to, out, handled
		}
	}
	to, answer := s.HandleDatagram(from, datagrams[0], now)
	if !to.IsValid() {
		return to, nil, 1
	}
	datagrams[0] = answer
	return to, datagrams[:1], 1
}

// forwardRun is forwardDatagram for the packets in front that have one header and
// go on as datagrams. It handles none where the first is not such a one.
func (s *Server) forwardRun(from netip.AddrPort, datagrams [][]byte) (to netip.AddrPort, out [][]byte, handled int) {
	t, number := readHeader(datagrams[0])
	c, dst := s.datagramsFrom(from), s.memberOf(number)
	if c == nil || c.datagrams.tag != t || dst == nil || dst.member.network != c.member.network {
		return to, nil, 0
	}
	if to = dst.datagrams.source; !to.IsValid() || s.silent(dst) {
		return netip.AddrPort{}, nil, 0
	}
	var reply [DatagramHeader]byte
	putHeader(reply[:], datagramData, dst.datagrams.tag, c.datagrams.number)
	header, replaced := binary.NativeEndian.Uint64(datagrams[0]), binary.NativeEndian.Uint64(reply[:])
	limit := DatagramHeader + MaxDatagramPayload(to.Addr())
	c.rate.refill(s.now)
	begin, end := 0, 0
	for handled < len(datagrams) {
		b := datagrams[handled]
		if len(b) <= DatagramHeader || len(b) > limit || binary.NativeEndian.Uint64(b) != header {
			break
		}
		handled++
		if !s.admitPacket(c, len(b)-DatagramHeader) {
			if begin < end {
				break
			}
			begin, end = handled, handled
			continue
		}
		binary.NativeEndian.PutUint64(b, replaced)
		end = handled
	}
	if begin == end {
		return netip.AddrPort{}, nil, handled
	}
	s.stats.PacketsOut += uint64(end - begin)
	s.stats.DatagramsForwarded += uint64(end - begin)
	return to, datagrams[begin:end], handled
}

// forwardDatagram takes one packet; b has a header.
func (s *Server) forwardDatagram(from netip.AddrPort, b []byte) (netip.AddrPort, []byte) {
	t, number := readHeader(b)
	c := s.datagramsFrom(from)
	payload := b[DatagramHeader:]
	if c == nil || c.datagrams.tag != t || len(payload) == 0 {
		return s.answerStale(from, b)
	}
	c.rate.refill(s.now)
	if !s.admitPacket(c, len(payload)) {
		return netip.AddrPort{}, nil
	}
	dst := s.memberOf(number)
	if dst == nil {
		if heir := s.heir(c, number); heir != nil {
			s.enqueue(heir, c.member.key, payload)
			return netip.AddrPort{}, nil
		}
	}
	if dst == nil || dst.member.network != c.member.network {
		s.stats.DroppedNoPeer++
		s.tellGone(c, FramePeer, ident.NodeKey{}, b[1+tagSize:DatagramHeader])
		return netip.AddrPort{}, nil
	}
	to := s.datagramsTo(dst, len(payload))
	if !to.IsValid() {
		s.enqueue(dst, c.member.key, payload)
		return netip.AddrPort{}, nil
	}
	putHeader(b, datagramData, dst.datagrams.tag, c.datagrams.number)
	s.stats.PacketsOut++
	s.stats.DatagramsForwarded++
	return to, b
}

// datagramsFrom returns the connection that an address is bound to, nil for none.
func (s *Server) datagramsFrom(from netip.AddrPort) *conn {
	if c := s.datagrams.from; c != nil && c.datagrams.source == from {
		return c
	}
	c := s.datagrams.bySource[from]
	s.datagrams.from = c
	return c
}

// memberOf returns the connection that has a number, nil for none.
func (s *Server) memberOf(number uint32) *conn {
	if c := s.datagrams.to; c != nil && c.datagrams.number == number {
		return c
	}
	c := s.datagrams.byNumber[number]
	s.datagrams.to = c
	return c
}

// admitPacket counts a packet of a connection, whose rate was refilled, and
// reports whether it may pass.
func (s *Server) admitPacket(c *conn, size int) bool {
	s.stats.PacketsIn++
	s.stats.BytesIn += uint64(size)
	if !c.rate.spend(int64(size)) {
		s.stats.DroppedRate++
		return false
	}
	if !s.datagrams.share.admit(&c.datagrams.window, size) {
		s.stats.DroppedShare++
		return false
	}
	return true
}

// heir returns the connection of the member that had a number before its last
// connection ended, nil for none that c may send to, and tells c and that member
// each other's number of now. A member that comes back within moments is so sent
// to before it asked for anybody's number: the answer to its first handshake, for
// one, which would be repeated only after five seconds.
func (s *Server) heir(c *conn, number uint32) *conn {
	m, ok := s.datagrams.retired.members[number]
	if !ok || m.network != c.member.network {
		return nil
	}
	dst := s.members[m]
	if dst == nil {
		return nil
	}
	s.stats.DatagramsInherited++
	if c.gone.IsZero() || s.now.Sub(c.gone) >= goneInterval {
		c.gone = s.now
		s.resolve(c, m.key)
	}
	return dst
}

// retired are the numbers of connections that ended, and whose they were.
type retired struct {
	members map[uint32]member
	numbers []uint32 // a ring once it is full
	oldest  int
}

func (r *retired) has(number uint32) bool {
	_, ok := r.members[number]
	return ok
}

func (r *retired) add(number uint32, m member) {
	if r.members == nil {
		r.members = make(map[uint32]member)
	}
	if len(r.numbers) < maxRetired {
		r.numbers = append(r.numbers, number)
	} else {
		delete(r.members, r.numbers[r.oldest])
		r.numbers[r.oldest] = number
		r.oldest = (r.oldest + 1) % maxRetired
	}
	r.members[number] = m
}

// answerStale tells an address that it is nobody's.
func (s *Server) answerStale(from netip.AddrPort, b []byte) (netip.AddrPort, []byte) {
	s.stats.DatagramsUnbound++
	if s.now.Sub(s.datagrams.staleAt) >= time.Second {
		s.datagrams.stale, s.datagrams.staleAt = 0, s.now
	}
	if s.datagrams.stale >= maxStale {
		return netip.AddrPort{}, nil
	}
	s.datagrams.stale++
	t, _ := readHeader(b)
	putHeader(b, datagramStale, t, 0)
	return from, b[:DatagramHeader]
}

// datagramsTo returns where a packet for a connection goes as a datagram,
// invalid for the stream.
func (s *Server) datagramsTo(c *conn, size int) netip.AddrPort {
	d := c.datagrams
	if d == nil || !d.source.IsValid() || size > MaxDatagramPayload(d.source.Addr()) {
		return netip.AddrPort{}
	}
	if s.silent(c) {
		s.unbind(c)
		return netip.AddrPort{}
	}
	return d.source
}

// silent reports whether a connection with datagrams has not bound its address
// for too long.
func (s *Server) silent(c *conn) bool { return s.now.Sub(c.datagrams.heard) >= datagramWait }

// HandleBacklog tells whether datagrams wait faster than they are taken, after
// each batch. While they do, who sends most is cut back to what others may have
// as well.
func (s *Server) HandleBacklog(backlog bool, now time.Time) {
	s.clock(now)
	if s.datagrams != nil {
		s.datagrams.share.observe(backlog, s.now)
	}
}

// resolve tells a client the number of another, and the other that of the
// client, so that each knows from whom the datagrams are.
func (s *Server) resolve(c *conn, key ident.NodeKey) {
	if c.datagrams == nil || !c.datagrams.resolves.take(1, s.now) {
		s.stats.DroppedControl++
		return
	}
	dst := s.members[member{c.member.network, key}]
	if dst == nil || dst.datagrams == nil {
		s.peer(c, key, 0)
		return
	}
	// Datagrams of one whose number the other was not told would go for nothing: it
	// goes on by the stream, and asks again.
	if s.peer(dst, c.member.key, c.datagrams.number) {
		s.peer(c, key, dst.datagrams.number)
	}
}

func (s *Server) peer(c *conn, key ident.NodeKey, number uint32) (told bool) {
	var body [ident.KeySize + 4]byte
	copy(body[:], key[:])
	binary.BigEndian.PutUint32(body[ident.KeySize:], number)
	return s.control(c, FramePeer, body[:])
}

// tellGone answers a sender into the void, but not packet by packet.
func (s *Server) tellGone(c *conn, kind FrameType, key ident.NodeKey, number []byte) {
	if !c.gone.IsZero() && s.now.Sub(c.gone) < goneInterval {
		return
	}
	c.gone = s.now
	s.control(c, kind, append(key[:], number...))
}
