//go:build !warren_unfiltered

package engine

// unfiltered is false in every program. A build with the tag warren_unfiltered,
// which nothing but a benchmark of tests/bench makes, lets every packet pass
// unseen, to measure what the filter costs; there is no setting that does.
const unfiltered = false
