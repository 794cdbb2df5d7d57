"""The raw web to a corpus worth training on. docs/web.md explains the whole; read the files in this order.

records     a page as it was found, a document as it is kept, a fault
crawl       files to pages: WARC, WET, HTML, Markdown, text, PDF, CSV, JSON lines
extract     a page to text
language    which language, by fastText's identifier
text        a text seen as words, lines, paragraphs and n-grams
rules       quality rules, each a pure function, and the table of where each threshold comes from
private     personal data, masked by typed tokens
classifier  hashed n-grams and logistic regression
ngrams      an n-gram model whose perplexity is a score
minhash     shingles, signatures, bands and rows
dedup       duplicate lines, documents, near-duplicates; decontamination
tally       the funnel, samples and histograms, merged from every file
settings    the options of a pipeline, read from TOML
steps       one page through all stages that need no other page
guard       a process that may hang or die while it reads a page
pipeline    all of it, resumable by file
report      the tally for the terminal and as one HTML page
synthetic   a small made-up web whose truth is known
"""
