package main

import (
	"bytes"
	"strings"
	"testing"
)

const head = "partner_order_id,pudo_point_id,name,email,phone,item,qty,price,weight_kg\n"

func TestSheet(t *testing.T) {
	const good = "A-1,pudo_1,Jane Doe,jane@example.com,+2340000000000,Kettle,1,8200,1.4\n"
	for _, tc := range []struct {
		name, sheet string
		rows        int
		bad         string // of the only bad line
		line        int
		err         string
	}{
		{name: "plain", sheet: head + good, rows: 1},
		{name: "from a spreadsheet", sheet: "\ufeff" + strings.ReplaceAll(head+good, "\n", "\r\n"), rows: 1},
		{name: "without the last line's end", sheet: head + strings.TrimSpace(good), rows: 1},
		{name: "columns elsewhere", sheet: "Colour,Name,email,phone,item,qty,price,weight_kg,pudo_point_id,partner_order_id\nred,J,j@example.com,1,K,1,1,0,p,A-1\n", rows: 1},
		{name: "blank lines", sheet: head + "\n" + good + "\n\n", rows: 1},
		{name: "nothing to do", sheet: head},
		{name: "quantity", sheet: head + strings.Replace(good, ",1,8200", ",two,8200", 1) + strings.Replace(good, "A-1", "A-2", 1), rows: 1, line: 2, bad: `qty "two" is not a whole number from 1`},
		{name: "price", sheet: head + strings.Replace(good, "8200", "NaN", 1), line: 2, bad: `price "NaN" is not a number from 0`},
		{name: "several", sheet: head + strings.Replace(strings.Replace(good, "8200", "-1", 1), "jane@", "jane", 1), line: 2, bad: `price "-1" is not a number from 0; email "janeexample.com" is not an address`},
		{name: "empty", sheet: head + strings.Replace(good, "pudo_1", " ", 1), line: 2, bad: "pudo_point_id is empty"},
		{name: "too few fields", sheet: head + "A-1,pudo_1\n" + good, rows: 1, line: 2, bad: "2 fields in place of 9"},
		{name: "twice", sheet: head + good + good, rows: 1, line: 3, bad: `partner_order_id "A-1" is in line 2 already`},
		{name: "open quote", sheet: head + strings.Replace(good, "Kettle", `"Kettle`, 1) + good, rows: 1, line: 2, bad: "extraneous or missing \" in quoted-field"},
		{name: "quote inside", sheet: head + strings.Replace(good, "Kettle", `Ket"tle`, 1) + good, rows: 1, line: 2, bad: "bare \" in non-quoted-field"},
		{name: "Latin-1", sheet: head + strings.Replace(good, "Jane", "Ren\xe9", 1), line: 2, bad: "not UTF-8"},
		{name: "no columns", sheet: good, err: "line 1: no column partner_order_id, pudo_point_id"},
		{name: "nothing", sheet: "", err: "the sheet is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rows, bad, err := readSheet(strings.NewReader(tc.sheet))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || len(rows) != tc.rows {
				t.Errorf("got %d rows, error %v; want %d rows", len(rows), err, tc.rows)
			}
			if tc.bad == "" {
				if len(bad) != 0 {
					t.Errorf("got bad lines %v, want none", bad)
				}
				return
			}
			if len(bad) != 1 || bad[0].line != tc.line || !strings.Contains(bad[0].err.Error(), tc.bad) {
				t.Errorf("got bad lines %v, want line %d: %s", bad, tc.line, tc.bad)
			}
		})
	}
}

func TestSample(t *testing.T) {
	rows, bad, err := readSheet(bytes.NewReader(sample))
	if err != nil || len(bad) > 0 || len(rows) != 150 {
		t.Errorf("got %d rows, bad lines %v, error %v; want 150 good rows", len(rows), bad, err)
	}
}
