"""The corpus: more than a thousand hostile and odd files, each made from nothing and the same at every run.

    python -m tests.corpus FOLDER         write them all, and a manifest of what may become of each
    ./test tests/corpus -n 0 -s  upload them all to a running service, among good photographs; print a table

On several of pytest's workers say `--dist loadfile`, or each makes a storm of its own.

- `bombs` ask for much, `damage` befell honest files, `lies` have headers that are wrong or go in circles, `polyglots`
  are something else as well, `metadata` has a text planted in every place there is, `strangers` are no pictures.
- `specimens`: what a file is, and what may become of it; `formats`: how each format is put together, byte by byte;
  `honest`: what they are made from, and the good photographs; `collection`: all of them.
- `storm` uploads them, `watch` looks at the processes meanwhile, `verdict` says what it came to.
"""
