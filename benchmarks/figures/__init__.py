"""The figures of the method: what each idea buys, in pictures and numbers.

`python -m benchmarks.figures` tells the story of `docs/method.md` on the project's own samples, or on any content and
style: it stylises (or finds what an earlier run stylised), measures, and writes contact sheets, a JSON and the page.

`metrics` defines the figures, `stages` the story, `pictures` makes and keeps what is measured, `report` gathers the
numbers and says whether the expected order holds, `sheets` and `page` show them.
"""
