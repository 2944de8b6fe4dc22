package partnerauth

import (
	"cmp"
	"slices"
	"sort"
)

// blockSize bounds what an insertion or a removal has to move.
const blockSize = 256

// A sorted is a list in the order of its keys. It stands in blocks, so that
// among a hundred thousand entries a change costs hardly more than among ten.
type sorted[K cmp.Ordered, V any] struct {
	blocks [][]entry[K, V] // none is empty, but where it is the only one
	size   int
}

type entry[K cmp.Ordered, V any] struct {
	value V
	key   K
}

// find returns the block and the index in it of the first entry whose key is
// not less than key.
func (s *sorted[K, V]) find(key K) (b, i int) {
	if len(s.blocks) > 1 {
		b = sort.Search(len(s.blocks)-1, func(b int) bool {
			block := s.blocks[b]
			return block[len(block)-1].key >= key
		})
	}
	if len(s.blocks) > 0 {
		block := s.blocks[b]
		i = sort.Search(len(block), func(i int) bool { return block[i].key >= key })
	}
	return b, i
}

// insert adds an entry, before those of the same key.
func (s *sorted[K, V]) insert(key K, value V) {
	b, i := s.find(key)
	if len(s.blocks) == 0 {
		s.blocks = append(s.blocks, nil)
	}
	if full := s.blocks[b]; len(full) == blockSize {
		s.blocks = slices.Insert(s.blocks, b+1, slices.Clone(full[blockSize/2:]))
		s.blocks[b] = slices.Delete(full, blockSize/2, blockSize)
		if i > blockSize/2 {
			b, i = b+1, i-blockSize/2
		}
	}
	s.blocks[b] = slices.Insert(s.blocks[b], i, entry[K, V]{value, key})
	s.size++
}

// remove removes one entry of that key and reports whether there was one.
func (s *sorted[K, V]) remove(key K) bool {
	b, i := s.find(key)
	if len(s.blocks) == 0 || i == len(s.blocks[b]) || s.blocks[b][i].key != key {
		return false
	}
	s.blocks[b] = slices.Delete(s.blocks[b], i, i+1)
	if len(s.blocks[b]) == 0 && len(s.blocks) > 1 {
		s.blocks = slices.Delete(s.blocks, b, b+1)
	}
	s.size--
	return true
}

// rank returns how many keys are less than key.
func (s *sorted[K, V]) rank(key K) int {
	b, i := s.find(key)
	for _, block := range s.blocks[:b] {
		i += len(block)
	}
	return i
}

// at returns the entry with i others before it; there must be that many.
func (s *sorted[K, V]) at(i int) entry[K, V] {
	for _, block := range s.blocks {
		if i < len(block) {
			return block[i]
		}
		i -= len(block)
	}
	panic("partnerauth: no such entry")
}
