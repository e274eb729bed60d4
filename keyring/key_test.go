package keyring

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html/template"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"encoding/base64"
	"encoding/hex"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

func TestParseKey(t *testing.T) {
	for _, n := range []int{16, 32} {
		key := mustKey(t, sequence(n))
		again, err := ParseKey(key.Export())
		if err != nil || !again.Equal(key) || again.Fingerprint() != key.Fingerprint() {
			t.Errorf("key of %d bytes does not survive Export and ParseKey: %v", n, err)
		}
		if diff := cmp.Diff(key, again); diff != "" { // by Equal
			t.Error(diff)
		}
	}
	// JavaScript's own, from a key bag.
	key, err := ParseKey("z4bz3diespTDtChx9syw12w")
	if err != nil || key.Fingerprint().String() != "zGcUFo3MVu39Q2rtUdEaPCejH5qZpkAkE9zzCieF3LLPM" {
		t.Errorf("fingerprint %v, %v", key.Fingerprint(), err)
	}
	if got := key.String(); got != "key(zGcUFo3MV)" {
		t.Errorf("prints as %s", got)
	}
	if !(Key{}).Equal(Key{}) || key.Equal(Key{}) || key.Equal(newKey(t)) || !(Key{}).IsZero() || key.IsZero() {
		t.Error("Equal or IsZero is wrong")
	}
	if _, err := NewKeys(Key{}); err == nil {
		t.Error("the zero Key passes as a key")
	}
}

func TestParseKeyRefuses(t *testing.T) {
	good := mustKey(t, sequence(32)).Export()
	for name, text := range map[string]string{
		"empty":            "",
		"prefix only":      "z",
		"no prefix":        good[1:],
		"hex":              "f" + hex.EncodeToString(sequence(32)),
		"base64":           "m" + base64.RawStdEncoding.EncodeToString(sequence(32)),
		"space behind":     good + " ",
		"newline behind":   good + "\n",
		"not in alphabet":  good[:20] + "0" + good[21:],
		"AES-192":          formatBase58(sequence(24)),
		"15 bytes":         formatBase58(sequence(16)[1:]),
		"33 bytes":         formatBase58(sequence(33)),
		"leading zero":     "z1" + good[1:],
		"quadratic length": "z" + strings.Repeat("2", 1<<20),
	} {
		_, err := ParseKey(text)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for n := 4; n+4 <= min(len(text), 64); n += 4 {
			if strings.Contains(err.Error(), text[n:n+4]) {
				t.Errorf("%s: the error quotes the key: %v", name, err)
				break
			}
		}
	}
}

func TestFingerprint(t *testing.T) {
	fp := newKey(t).Fingerprint()
	again, err := ParseFingerprint(fp.String())
	if err != nil || again != fp {
		t.Errorf("%v, %v; want %v", again, err, fp)
	}
	if b, err := json.Marshal(fp); err != nil || string(b) != `"`+fp.String()+`"` {
		t.Errorf("marshals as %s, %v", b, err)
	}
	if short := (Fingerprint{}).Short(); short != "z11111111" {
		t.Errorf("Short of zeros is %s", short)
	}
	if _, err := ParseFingerprint(mustKey(t, sequence(16)).Export()); err == nil {
		t.Error("16 bytes pass as a fingerprint")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(formatBase58(sequence(16)))
	f.Add(formatBase58(sequence(32)))
	f.Add("z11111111111111111111111111111111")
	f.Add("zz")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err == nil && key.Export() != text {
			t.Fatal("a key has two spellings")
		}
		if err != nil && err.Error() != errKeyText.Error() {
			t.Fatalf("error %v", err)
		}
		if fp, err := ParseFingerprint(text); err == nil && fp.String() != text {
			t.Fatal("a fingerprint has two spellings")
		}
	})
}

// leaks returns the form in which text shows one of the secrets.
func leaks(text string, secrets ...[]byte) string {
	for _, s := range secrets {
		s = s[:16] // the first half is bad enough
		decimal := strings.Trim(fmt.Sprint(s[:4]), "[]")
		for form, shown := range map[string]string{
			"raw": string(s[:8]), "hex": hex.EncodeToString(s[:8]),
			"spaced hex": fmt.Sprintf("% x", s[:4]), "Go bytes": strings.Trim(fmt.Sprintf("%#v", s[:4])[len("[]byte{"):], "{}"),
			"quoted": strings.Trim(fmt.Sprintf("%q", s[:8]), `"`), "decimal": decimal,
			"JSON numbers": strings.ReplaceAll(decimal, " ", ","),
			"base64":       base64.StdEncoding.EncodeToString(s)[:16], "base64url": base64.URLEncoding.EncodeToString(s)[:16],
		} {
			// Lower case is for the digits; it would make all bytes that are no UTF-8 the same.
			if strings.Contains(text, shown) || form != "raw" && strings.Contains(strings.ToLower(text), strings.ToLower(shown)) {
				return form
			}
		}
	}
	return ""
}

// leaksBase58 is for whole values, since base58 has no prefixes in common.
func leaksBase58(text string, secrets ...[]byte) bool {
	for _, s := range secrets {
		if strings.Contains(text, formatBase58(s)[1:]) {
			return true
		}
	}
	return false
}

// TestSecretsDoNotPrint turns every exported type that can reach a secret into text in every way that the
// standard library knows, bare, behind pointers, and in exported and unexported fields.
func TestSecretsDoNotPrint(t *testing.T) {
	r, err := Open(vfs.NewMem(), "keys")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := r.Create("todo", []Key{newKey(t), mustKey(t, []byte("a JavaScript key"))})
	if err != nil {
		t.Fatal(err)
	}
	key := entry.Keys.Default()
	identity, vault := r.Identity(), r.Vault()
	secrets := [][]byte{key.s().raw, entry.Keys.All()[1].s().raw, identity.key().Seed(), vault.master()}

	type public struct {
		Key      Key
		Keys     *Keys
		Entry    Entry
		Identity Identity
		Vault    *Vault
		Ring     *Ring
	}
	type private struct {
		key      Key
		keys     *Keys
		entry    Entry
		identity Identity
		vault    *Vault
		ring     *Ring
		value    Vault
		values   []any
	}
	shown := private{key, entry.Keys, entry, identity, vault, r, *vault, []any{key, *vault, reflect.ValueOf(entry.Keys).Elem().Interface()}}
	values := map[string]any{
		"Key": key, "*Key": &key, "[]Key": []Key{key}, "map of Key": map[string]Key{"k": key},
		"*Keys": entry.Keys, "Keys": reflect.ValueOf(entry.Keys).Elem().Interface(),
		"[]Key of All": entry.Keys.All(),
		"Entry":        entry, "*Entry": &entry, "[]Entry": r.Ledgers(),
		"Identity": identity, "*Identity": &identity,
		"*Vault": vault, "Vault": reflect.ValueOf(vault).Elem().Interface(),
		"*Ring": r, "Ring": reflect.ValueOf(r).Elem().Interface(),
		"exported fields":   public{key, entry.Keys, entry, identity, vault, r},
		"unexported fields": shown,
		"*unexported":       &shown,
		"UnknownKeyError":   &UnknownKeyError{key.Fingerprint()},
	}
	for name, v := range values {
		out := map[string]string{}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%c", "%U", "%b", "%o", "%O", "%e", "%g", "%t", "%p", "%T", "%20v", "%#x", "%+q", "%#q"} {
			out["fmt "+verb] = fmt.Sprintf(verb, v)
		}
		var b bytes.Buffer
		encode := func(how string, f func()) {
			b.Reset()
			f()
			out[how] = b.String()
		}
		encode("json", func() {
			if err := json.NewEncoder(&b).Encode(v); err != nil {
				b.WriteString(err.Error())
			}
		})
		encode("xml", func() {
			if err := xml.NewEncoder(&b).Encode(v); err != nil {
				b.WriteString(err.Error())
			}
		})
		encode("gob", func() {
			if err := gob.NewEncoder(&b).Encode(v); err != nil {
				b.WriteString(err.Error())
			}
		})
		encode("slog text", func() { slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v) })
		encode("slog json", func() { slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v) })
		encode("template", func() {
			if err := template.Must(template.New("").Parse("{{.}}")).Execute(&b, v); err != nil {
				b.WriteString(err.Error())
			}
		})
		for how, text := range out {
			if form := leaks(text, secrets...); form != "" || leaksBase58(text, secrets...) {
				t.Errorf("%s of %s shows a secret (%s): %q", how, name, form, text)
			}
		}
	}
	if got := fmt.Sprintf("%v %+v %#v %d %s", entry.Keys, vault, identity, r, slog.AnyValue(entry.Keys).Resolve()); got != strings.TrimSpace(strings.Repeat(redacted+" ", 5)) {
		t.Errorf("prints as %s", got)
	}
	for _, v := range []any{key, entry.Keys, entry, identity, vault, r} {
		if b, err := json.Marshal(v); err == nil {
			t.Errorf("%T marshals to %s", v, b)
		}
	}
}

// The test above is worth nothing if leaks finds nothing.
func TestLeaksFinds(t *testing.T) {
	secret := []byte("\xfe\x01secret \"bytes\" of a key, long")
	type open struct{ B []byte }
	b64, _ := json.Marshal(open{secret})
	for _, text := range []string{
		string(secret), fmt.Sprint(secret), fmt.Sprint(open{secret}), fmt.Sprintf("%#v", open{secret}), fmt.Sprintf("%x", open{secret}),
		fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), fmt.Sprintf("%q", secret), string(b64),
		base64.RawURLEncoding.EncodeToString(secret),
	} {
		if leaks(text, secret) == "" {
			t.Errorf("not found in %s", text)
		}
	}
	if !leaksBase58("the key "+formatBase58(secret)+" is", secret) {
		t.Error("not found in base58")
	}
	if leaks("nothing to see", secret) != "" {
		t.Error("found where it is not")
	}
}
