//go:build !race

package partnerredis

const raceEnabled = false
