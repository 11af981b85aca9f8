package registry

import (
	"errors"
	"fmt"
)

// Errors of Decide, compared with errors.Is. Their text is for the operator;
// a stranger is told no more than which of them it is.
var (
	// ErrAuthKey means a join key that is unknown, spent, expired or revoked.
	ErrAuthKey = errors.New("registry: join key refused")
	// ErrRevoked means a machine key or node key that was revoked.
	ErrRevoked = errors.New("registry: revoked")
	// ErrSuspended means a device or join key of a user who is suspended.
	ErrSuspended = errors.New("registry: the user is suspended")
	// ErrDenied means something asked for that the asker may not have.
	ErrDenied = errors.New("registry: not allowed")
	// ErrKeyInUse means a node key that belongs to another device.
	ErrKeyInUse = errors.New("registry: the node key belongs to another device")
	// ErrInvalid means a value that no record may hold.
	ErrInvalid = errors.New("registry: invalid")
	// ErrNotFound means that there is no such user, key or device.
	ErrNotFound = errors.New("registry: not found")
	// ErrExists means that there is one already.
	ErrExists = errors.New("registry: exists already")
	// ErrConflict means that the record is no longer what the asker believed.
	ErrConflict = errors.New("registry: changed in the meantime")
	// ErrFull means that a limit on how many there may be is reached.
	ErrFull = errors.New("registry: full")
)

func refuse(kind error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))
}
