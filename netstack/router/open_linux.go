package router

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelRouter is the Router of Linux.
type kernelRouter struct {
	name     string // of the interface
	netlink  *netlink.Handle
	nftables *nftables.Conn
	sysctls  sysctls

	mu      sync.Mutex // protects all below, and orders changes
	current Settings
	good    bool // whether current was carried out in full
	table   bool // whether there is a table of ours
	closed  bool
}

var _ Router = (*kernelRouter)(nil)

// Open returns the Router of the interface with the name, in the network
// namespace of the calling thread. What a process before left behind, which
// ended without Close, is removed.
func Open(name string) (Router, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("router: opening netlink: %w", err)
	}
	// A lasting connection stays in the namespace of this thread.
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("router: opening nftables: %w", err)
	}
	r := &kernelRouter{name: name, netlink: handle, nftables: conn, good: true}
	// Without nftables in the kernel there is nothing to remove either, and
	// Configure says so.
	_ = r.removeStale()
	if err := r.configureRules(&Settings{}); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Configure implements Router.
func (r *kernelRouter) Configure(s Settings) error {
	if err := s.Validate(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("router: closed")
	}
	if len(s.Own) == 0 {
		s = Settings{}
	}
	if r.good && r.current.equal(&s) {
		return nil
	}
	err := r.configure(&s)
	r.current, r.good = s.clone(), err == nil
	return err
}

func (r *kernelRouter) configure(s *Settings) error {
	var errs []error
	guardErr := r.configureTable(s)
	if len(s.Forward) > 0 && (guardErr == nil || errors.Is(guardErr, errSources)) {
		errs = append(errs, r.sysctls.forward(s.Forward))
	}
	if len(s.Forward) == 0 {
		r.sysctls.restoreForwarding()
	}
	if s.Exit || len(s.Accept) > 0 {
		// Replies to marked packets are looked up with their mark, or the
		// strict form of the reverse-path filter drops them.
		r.sysctls.validMark()
	}
	errs = append(errs, r.configureRules(s), r.configureRoutes(s))
	err := errors.Join(errs...)
	routes := len(s.Forward) > 0 || len(s.Accept) > 0 || s.Exit
	if err == nil && guardErr != nil && (!routes || errors.Is(guardErr, errSources)) {
		return fmt.Errorf("%w: %w", ErrGuard, guardErr)
	}
	return errors.Join(guardErr, err)
}

// Close implements Router.
func (r *kernelRouter) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.configureRules(&Settings{})
	if r.table {
		err = errors.Join(err, r.removeTable())
	}
	r.sysctls.restoreForwarding()
	r.sysctls.restoreMark()
	r.netlink.Close()
	return errors.Join(err, r.nftables.CloseLasting())
}

// mark gives a socket the Mark, where that is permitted.
func mark(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(Mark)) }
