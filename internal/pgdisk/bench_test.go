package pgdisk

import (
	"context"
	"testing"
)

// BenchmarkFindEnd walks the golden WAL of some 2 MB.
func BenchmarkFindEnd(b *testing.B) {
	g := loadGolden(b, damageMajor)
	w, from := g.wal(b), g.first(b)
	end, err := w.FindEnd(context.Background(), 2, from)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(end.LSN - from))
	for b.Loop() {
		if _, err := w.FindEnd(context.Background(), 2, from); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPoll is what a candidate does that waits for the last record: it looks from the
// last end on.
func BenchmarkPoll(b *testing.B) {
	g := loadGolden(b, damageMajor)
	w := g.wal(b)
	end, err := w.FindEnd(context.Background(), 2, g.first(b))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := w.FindEnd(context.Background(), 2, end.Last.Start); err != nil {
			b.Fatal(err)
		}
	}
}
