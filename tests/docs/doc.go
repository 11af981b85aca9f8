// Package docs runs what the documents tell people to type. Every fenced block
// of the language console is either carried out, on machines of tests/lab, or
// held against the programs' own help; every policy in the documents is read
// and compiled; the service files' command lines are held against the programs
// too.
//
// The words after "console" say where the lines of a block are typed: `console
// hub` on the coordinator's machine, `console laptop` and `console db` on
// nodes. Lines that do not begin with "$ " are what the command before them
// prints, "…" standing for what differs each time. With the word `fails` each
// command of the block exits with status 1. A block without a machine is only
// held against the help. After `jsonc` or any other language a word with a dot
// in it is the file that the block is put into.
package docs
