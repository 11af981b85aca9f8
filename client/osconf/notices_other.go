//go:build !linux

package osconf

import (
	"context"
	"errors"
)

// kernelNotices is for Linux; elsewhere Run looks from time to time.
func kernelNotices(context.Context, chan<- struct{}) error { return errors.ErrUnsupported }
