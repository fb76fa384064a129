"""What the command line is made of: `arguments` understands, one module per command does the work.

Arguments, settings and presets are understood without PyTorch, which takes seconds to import; a mistake there is
answered at once.
"""
