//go:build !linux

package sock

import "errors"

// listLinks is for Linux; elsewhere interfaces are known by their names.
func listLinks() ([]linkInfo, error) { return nil, errors.ErrUnsupported }
