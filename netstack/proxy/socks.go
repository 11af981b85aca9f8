package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// The constants of RFC 1928.
const (
	socksVersion = 5

	socksNoAuthentication = 0x00
	socksNoneAcceptable   = 0xff

	socksConnect = 1

	socksIPv4   = 1
	socksDomain = 3
	socksIPv6   = 4
)

// socksReply is the REP field of a reply (RFC 1928 §6).
type socksReply byte

const (
	socksSucceeded           socksReply = 0
	socksFailure             socksReply = 1
	socksNotAllowed          socksReply = 2
	socksNetworkUnreachable  socksReply = 3
	socksHostUnreachable     socksReply = 4
	socksConnectionRefused   socksReply = 5
	socksCommandUnsupported  socksReply = 7
	socksAddrTypeUnsupported socksReply = 8
)

var (
	errSOCKSVersion  = errors.New("proxy: not SOCKS version 5")
	errSOCKSMethods  = errors.New("proxy: the client offers no access without authentication")
	errSOCKSCommand  = errors.New("proxy: only the SOCKS command CONNECT is supported")
	errSOCKSAddrType = errors.New("proxy: unknown SOCKS address type")
)

func serveSOCKS(ctx context.Context, s *Server, l net.Listener) error {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		handlers.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if answer, err := s.handleSOCKS(ctx, conn); err != nil {
				// Counted before it is told: a client that knows of its failure
				// finds it in the counters.
				s.count(ctx, err)
				// The error of the client's counts more than that of telling it.
				_, _ = conn.Write(answer)
			}
		})
	}
}

// handleSOCKS serves one connection; the error says why the request was not
// served, and answer what is left to tell the client of it, if anything.
func (s *Server) handleSOCKS(ctx context.Context, conn net.Conn) (answer []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(s.cfg.RequestTimeout)); err != nil {
		return nil, err
	}
	if err := readSOCKSGreeting(conn); err != nil {
		if errors.Is(err, errSOCKSMethods) {
			return []byte{socksVersion, socksNoneAcceptable}, err
		}
		return nil, err
	}
	if _, err := conn.Write([]byte{socksVersion, socksNoAuthentication}); err != nil {
		return nil, err
	}
	to, err := readSOCKSRequest(conn)
	if err != nil {
		return socksAnswer(replyFor(err), nil), err
	}
	if err := conn.SetDeadline(time.Now().Add(s.cfg.DialTimeout + s.cfg.RequestTimeout)); err != nil {
		return nil, err
	}
	remote, err := s.cfg.dial(ctx, to)
	if err != nil {
		return socksAnswer(replyFor(err), nil), err
	}
	if _, err := conn.Write(socksAnswer(socksSucceeded, remote.LocalAddr())); err != nil {
		remote.Close()
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		remote.Close()
		return nil, err
	}
	relay(ctx, conn, conn, remote)
	return nil, nil
}

// readSOCKSGreeting reads the methods that a client offers (RFC 1928 §3) and
// returns nil if access without authentication is among them.
func readSOCKSGreeting(r io.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("proxy: reading SOCKS greeting: %w", err)
	}
	if head[0] != socksVersion {
		return errSOCKSVersion
	}
	var methods [255]byte
	offered := methods[:head[1]]
	if _, err := io.ReadFull(r, offered); err != nil {
		return fmt.Errorf("proxy: reading SOCKS greeting: %w", err)
	}
	for _, method := range offered {
		if method == socksNoAuthentication {
			return nil
		}
	}
	return errSOCKSMethods
}

// readSOCKSRequest reads a request (RFC 1928 §4), and not a byte more.
func readSOCKSRequest(r io.Reader) (destination, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return destination{}, fmt.Errorf("proxy: reading SOCKS request: %w", err)
	}
	if head[0] != socksVersion {
		return destination{}, errSOCKSVersion
	}
	host, err := readSOCKSHost(r, head[3])
	if err != nil {
		return destination{}, err
	}
	var port [2]byte
	if _, err := io.ReadFull(r, port[:]); err != nil {
		return destination{}, fmt.Errorf("proxy: reading SOCKS request: %w", err)
	}
	if head[1] != socksConnect {
		return destination{}, errSOCKSCommand
	}
	return newDestination(host, binary.BigEndian.Uint16(port[:]))
}

func readSOCKSHost(r io.Reader, kind byte) (string, error) {
	var buf [255]byte
	var host []byte
	switch kind {
	case socksIPv4:
		host = buf[:4]
	case socksIPv6:
		host = buf[:16]
	case socksDomain:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return "", fmt.Errorf("proxy: reading SOCKS request: %w", err)
		}
		host = buf[:buf[0]]
	default:
		return "", errSOCKSAddrType
	}
	if _, err := io.ReadFull(r, host); err != nil {
		return "", fmt.Errorf("proxy: reading SOCKS request: %w", err)
	}
	if kind == socksDomain {
		return string(host), nil
	}
	addr, _ := netip.AddrFromSlice(host)
	return addr.String(), nil
}

// socksAnswer is the answer to a request (RFC 1928 §6); bound is the
// connection's address on the overlay's side, nil for none.
func socksAnswer(reply socksReply, bound net.Addr) []byte {
	addr := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if tcp, ok := bound.(*net.TCPAddr); ok {
		if own := tcp.AddrPort(); own.IsValid() {
			addr = netip.AddrPortFrom(own.Addr().Unmap(), own.Port())
		}
	}
	msg := []byte{socksVersion, byte(reply), 0, socksIPv4}
	if addr.Addr().Is6() {
		msg[3] = socksIPv6
	}
	msg = append(msg, addr.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(msg, addr.Port())
}

// replyFor tells a client as much of an error as SOCKS has words for.
func replyFor(err error) socksReply {
	var refused *NotAllowedError
	switch {
	case errors.Is(err, ErrNotOverlay), errors.As(err, &refused):
		return socksNotAllowed
	case errors.Is(err, errSOCKSCommand):
		return socksCommandUnsupported
	case errors.Is(err, errSOCKSAddrType):
		return socksAddrTypeUnsupported
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksConnectionRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return socksNetworkUnreachable
	case errors.Is(err, ErrUnknownName), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ETIMEDOUT),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return socksHostUnreachable
	}
	return socksFailure
}
