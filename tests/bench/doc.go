// Package bench measures Warren as a whole: real programs on the hosts of
// package lab. It has benchmarks only; `make bench` runs them, and README.md
// keeps the figures.
package bench
