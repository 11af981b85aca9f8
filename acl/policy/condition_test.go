package policy

import (
	"strings"
	"testing"
)

func TestConditionHolds(t *testing.T) {
	attributes := map[string]Value{
		"node:os": {Text: "macos"}, "node:osVersion": {Text: "14.10.1"}, "node:version": {Text: "1.2-rc1"},
		"custom:n": {Type: Number, Number: 7}, "custom:b": {Type: Bool, Bool: true}, "custom:text7": {Text: "7"}, "custom:true": {Text: "true"},
	}
	for text, want := range map[string]bool{
		"node:os == 'macos'":                true,
		"node:os == \"linux\"":              false,
		"node:os != 'linux'":                true,
		"node:os != 'macos'":                false,
		"node:os in ['linux', 'macos']":     true,
		"node:os NOT IN ['linux', 'macos']": false,
		"node:os NOT IN ['linux']":          true,
		"node:os IS SET":                    true,
		"node:os NOT SET":                   false,
		"ip:country NOT SET":                true,
		"ip:country is not set":             true,
		"ip:country IS SET":                 false,
		"ip:country != 'DE'":                false, // not knowing is never a permission
		"ip:country NOT IN ['DE']":          false,
		"node:osVersion >= '14.9'":          true, // by number, not by letter
		"node:osVersion >= '14.10.1'":       true,
		"node:osVersion > '14.10.1'":        false,
		"node:osVersion > '14.10'":          true,
		"node:osVersion < '14.10.1.2'":      true,
		"node:osVersion < '14.10.1-beta'":   false,
		"node:osVersion <= '014.010.001'":   true,
		"node:version < '1.2'":              true, // a release candidate comes before its release
		"node:version < '1.2-rc2'":          true,
		"node:version > '1.1.9'":            true,
		"custom:n == 7":                     true,
		"custom:n >= 7.5":                   false,
		"custom:n < 1e3":                    true,
		"custom:n == '7'":                   true,
		"custom:text7 == 7":                 true,
		"custom:text7 > 6":                  true,
		"custom:b == true":                  true,
		"custom:b != true":                  false,
		"custom:b == 'true'":                true,
		"custom:true == true":               true,
		"custom:b == 1":                     false,
		"custom:n < 'macos'":                false, // no order between a number and a word
		"custom:n > 'macos'":                false,
		"  node:os=='macos'  ":              true,
	} {
		c, fault := parseCondition(text)
		if fault != nil {
			t.Errorf("%s: %+v", text, fault)
			continue
		}
		if got := c.Holds(attributes); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestVersionsAreOrdered(t *testing.T) {
	ordered := strings.Fields("1.0-alpha 1.0-beta 1.0-rc1 1.0-rc2 1.0-rc10 1.0 1.0.1 1.0.2 1.0.10 1.1 1.9 1.10 2 10-rc 10")
	for i, a := range ordered {
		for j, b := range ordered {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s and %s compare %d", a, b, got)
			}
		}
	}
}
