package pail

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"fpnode/internal/dagcbor"
)

// ErrData is wrapped by the errors of DecodeData.
var ErrData = errors.New("not the data of a pail event")

// An Op is one change.
type Op struct {
	Del   bool // remove the key; Value does not count
	Key   string
	Value cid.Cid
}

// Data is what an event of the clock says about the map, its data field:
//
//	{key, root, type: "put", value}
//	{key, root, type: "del"}
//	{ops: [{key, type: "put", value}…], root, type: "batch"}
//
// Fireproof writes put for one document and batch for several; it never writes
// del. The fields stand in this order.
type Data struct {
	Batch bool
	Root  cid.Cid // root of the map after the event, as its author computed it
	Ops   []Op    // one unless Batch; in a batch no Del
}

// DecodeData decodes the data field of an event.
func DecodeData(b []byte) (Data, error) {
	if len(b) > MaxDataBytes {
		return Data{}, fmt.Errorf("%w: %d bytes", ErrData, len(b))
	}
	r := dagcbor.NewReader(b)
	var d Data
	n := r.MapLen()
	if n == 0 || r.Kind() != dagcbor.KindText {
		r.Fail(errors.New("no fields"))
	}
	switch first := r.TextBytes(); {
	case r.Err() != nil:
	case string(first) == "ops" && n == 3:
		d.Batch = true
		d.readOps(r)
		d.readRoot(r)
		r.Key("type")
		if t := r.TextBytes(); string(t) != "batch" {
			r.Fail(fmt.Errorf("type %.32q of a batch", t))
		}
	case string(first) == "key" && (n == 3 || n == 4):
		op := Op{Del: n == 3, Key: r.Text()}
		d.readRoot(r)
		readType(r, op.Del)
		op.readValue(r)
		d.Ops = []Op{op}
	default:
		r.Fail(fmt.Errorf("%d fields, the first is %.32q", n, first))
	}
	if err := r.End(); err != nil {
		return Data{}, fmt.Errorf("%w: %w", ErrData, err)
	}
	return d, nil
}

func (d *Data) readOps(r *dagcbor.Reader) {
	n := r.ArrayLen()
	const leastOpBytes = 64 // less than {key: "", type: "put", value: CID} takes
	d.Ops = make([]Op, 0, min(n, MaxDataBytes/leastOpBytes))
	for range n {
		if fields := r.MapLen(); fields != 3 {
			r.Fail(fmt.Errorf("operation of %d fields", fields))
			return
		}
		r.Key("key")
		op := Op{Key: r.Text()}
		readType(r, false)
		op.readValue(r)
		d.Ops = append(d.Ops, op)
	}
}

func (d *Data) readRoot(r *dagcbor.Reader) {
	r.Key("root")
	if d.Root = r.Link(); r.Err() == nil && !isShardCID(d.Root) {
		r.Fail(fmt.Errorf("root %s is not DAG-CBOR with SHA2-256", d.Root))
	}
}

func readType(r *dagcbor.Reader, del bool) {
	r.Key("type")
	if t := r.TextBytes(); string(t) != typeOf(del) {
		r.Fail(fmt.Errorf("type %.32q, not %q", t, typeOf(del)))
	}
}

// readValue reads the value of a put and checks its key. A del of a key that
// cannot be there does nothing.
func (op *Op) readValue(r *dagcbor.Reader) {
	if op.Del {
		return
	}
	r.Key("value")
	op.Value = r.Link()
	if err := ValidKey(op.Key); err != nil {
		r.Fail(err)
	}
}

func typeOf(del bool) string {
	if del {
		return "del"
	}
	return "put"
}

// Encode returns the data field. A Data that is not a batch must have one Op.
func (d Data) Encode() []byte {
	size := 64
	for _, op := range d.Ops {
		size += 64 + len(op.Key) + op.Value.ByteLen()
	}
	b := make([]byte, 0, size)
	if !d.Batch {
		op := d.Ops[0]
		fields := 4
		if op.Del {
			fields = 3
		}
		b = dagcbor.AppendMap(b, fields)
		b = dagcbor.AppendText(b, "key")
		b = dagcbor.AppendText(b, op.Key)
		b = dagcbor.AppendText(b, "root")
		b = dagcbor.AppendLink(b, d.Root)
		return op.appendRest(b)
	}
	b = dagcbor.AppendMap(b, 3)
	b = dagcbor.AppendText(b, "ops")
	b = dagcbor.AppendArray(b, len(d.Ops))
	for _, op := range d.Ops {
		b = dagcbor.AppendMap(b, 3)
		b = dagcbor.AppendText(b, "key")
		b = dagcbor.AppendText(b, op.Key)
		b = op.appendRest(b)
	}
	b = dagcbor.AppendText(b, "root")
	b = dagcbor.AppendLink(b, d.Root)
	b = dagcbor.AppendText(b, "type")
	return dagcbor.AppendText(b, "batch")
}

// appendRest writes the fields type and value.
func (op *Op) appendRest(b []byte) []byte {
	b = dagcbor.AppendText(b, "type")
	b = dagcbor.AppendText(b, typeOf(op.Del))
	if op.Del {
		return b
	}
	b = dagcbor.AppendText(b, "value")
	return dagcbor.AppendLink(b, op.Value)
}
