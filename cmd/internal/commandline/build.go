package commandline

import (
	"runtime"
	"runtime/debug"
)

// Build is which program this is.
type Build struct {
	Version  string `json:"version"` // "devel" for one without a version
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // whether there was more than the commit
	Go       string `json:"go"`
}

// String returns version and commit in one line.
func (b Build) String() string {
	s := b.Version
	if b.Commit != "" {
		s += " (" + b.Commit[:min(12, len(b.Commit))] + ")"
	}
	return s
}

// CurrentBuild is of the program that runs.
func CurrentBuild() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return buildOf(info)
}

func buildOf(info *debug.BuildInfo) Build {
	b := Build{Version: "devel", Go: runtime.Version()}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
