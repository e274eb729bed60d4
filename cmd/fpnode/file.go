package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fpnode/api"
)

func (a *app) file() *cobra.Command {
	return a.nouns("file", "add, get and list files of documents", a.fileAdd(), a.fileGet(), a.fileLs())
}

func (a *app) fileAdd() *cobra.Command {
	var contentType string
	cmd := &cobra.Command{
		Use:               "add LEDGER ID NAME [PATH]",
		Short:             "store a file in a document",
		Long:              "Stores a file in a document, which is made if it is not there. Without PATH the content is read from stdin.",
		Args:              cobra.RangeArgs(3, 4),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode file add notes milk receipt.jpg ~/Pictures/receipt.jpg",
	}
	cmd.Flags().StringVar(&contentType, "type", "", "media `TYPE`; found out from name and content if not given")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		ledger, id, name := args[0], args[1], args[2]
		var f *os.File
		if len(args) == 4 && args[3] != "-" {
			var err error
			if f, err = os.Open(args[3]); err != nil {
				return cannotRead(err)
			}
			defer f.Close()
		} else {
			spooled, err := spool(interruptible(ctx, a.in))
			if err != nil {
				return err
			}
			defer spooled.Close()
			f = spooled
		}
		info, err := f.Stat()
		if err != nil {
			return cannotRead(err)
		}
		if info.IsDir() {
			return &api.Error{Code: api.BadInput, Message: fmt.Sprintf("%s is a directory", args[3]), Hint: "add its files one by one"}
		}
		if info.Size() > api.MaxFileBytes {
			return &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the file has %s; the limit is %s", size(info.Size()), size(api.MaxFileBytes))}
		}
		if contentType == "" {
			if contentType, err = mediaType(name, f); err != nil {
				return cannotRead(err)
			}
		}
		m := a.meter()
		defer m.done()
		r, err := c.AddFile(ctx, ledger, id, name, contentType, info.Size(), &counted{r: f, show: func(n int64) {
			m.show(api.Progress{Stage: "adding " + name, Done: n, Total: info.Size()})
		}})
		if err != nil {
			return err
		}
		m.done()
		return a.receipt(r)
	})
	return cmd
}

// spool keeps stdin in an unnamed private file, since the size of a file has
// to be known before it is stored.
func spool(r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp("", "fpnode-*") // 0600
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	n, err := io.Copy(f, io.LimitReader(r, api.MaxFileBytes+1))
	if err == nil && n > api.MaxFileBytes {
		err = &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the input is larger than %s", size(api.MaxFileBytes))}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func mediaType(name string, f *os.File) (string, error) {
	if t := mime.TypeByExtension(filepath.Ext(name)); t != "" {
		return t, nil
	}
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	return http.DetectContentType(head[:n]), nil
}

// counted shows how much was read.
type counted struct {
	r    io.Reader
	n    int64
	show func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.show(c.n)
	return n, err
}

func (a *app) fileGet() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "get LEDGER ID NAME [PATH]",
		Short:             "write a file of a document to PATH, or to stdout",
		Args:              cobra.RangeArgs(3, 4),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode file get notes milk receipt.jpg receipt.jpg",
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace PATH if it is there")
	cmd.RunE = a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
		info, content, err := c.File(ctx, args[0], args[1], args[2])
		if err != nil {
			return err
		}
		defer content.Close()
		m := a.meter()
		defer m.done()
		r := &counted{r: content, show: func(n int64) {
			m.show(api.Progress{Stage: "getting " + args[2], Done: n, Total: info.Size})
		}}
		if len(args) == 3 || args[3] == "-" {
			if a.outFd >= 0 && !strings.HasPrefix(info.Type, "text/") {
				return misuse("%q is no text (%s): give a PATH to write it to", args[2], info.Type)
			}
			_, err := io.Copy(a.out, r)
			return err
		}
		if err := saveFile(args[3], force, r); err != nil {
			return err
		}
		m.done()
		if a.json {
			return a.object(info)
		}
		a.print("%s  %s", args[3], size(info.Size))
		return nil
	})
	return cmd
}

// saveFile writes r to path, whole or not at all.
func saveFile(path string, force bool, r io.Reader) (err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%s is there already", path), Hint: "--force replaces it"}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fpnode-*")
	if err != nil {
		return cannotRead(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if !force { // rename would replace what came meanwhile
		if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
			return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%s is there already", path), Hint: "--force replaces it"}
		} else if err == nil {
			return os.Remove(f.Name())
		}
	}
	return os.Rename(f.Name(), path)
}

func (a *app) fileLs() *cobra.Command {
	return &cobra.Command{
		Use:               "ls LEDGER ID",
		Short:             "list the files of a document",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.ledgerNames,
		Example:           "  fpnode file ls notes milk",
		RunE: a.verb(haveStore, func(ctx context.Context, c *api.Client, args []string) error {
			table := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			for f, err := range c.Files(ctx, args[0], args[1]) {
				if err != nil {
					return err
				}
				if a.json {
					if err := a.object(f); err != nil {
						return err
					}
					continue
				}
				when := "-"
				if f.Modified != 0 {
					when = time.UnixMilli(f.Modified).UTC().Format(time.RFC3339)
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", cell(f.Name), size(f.Size), cell(f.Type), when)
			}
			return table.Flush()
		}),
	}
}
