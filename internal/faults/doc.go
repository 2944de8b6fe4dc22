// Package faults has no code but its tests: partnerauth through real network faults (toxiproxy), real proxies (nginx,
// squid) and real rate limiters (nginx, haproxy), with a stand-in partner behind them. ./install puts the programs on a
// Debian machine; the tests start them.
//
//	go test ./...                             # a minute: limiters count in windows of 3 s instead of a minute
//	go test -short ./...                      # 20 s, without the limiters
//	go test -timeout 30m ./... -args -long    # 14 minutes: limiters as partners would have them
package faults
