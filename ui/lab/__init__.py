"""The lab: a site that computes and shows tables of pictures, live, and takes new ones.

request ─ headers ─ errors ─ Host ─ token ─ Origin, CSRF ─┬ views   pages, which work without scripts; new: the form
                                                          ├ api     JSON and its OpenAPI document; orders: its half
                                                          ├ events  one stream of changes per page
                                                          └ media   pictures by opaque id
requests what comes in, as models; messages: what goes out
experts  settings for experts, between text and what they are
steering from dials that are turned to new weights, and to words
tables   which tables there are: the configuration; own_tables: those that people asked for, and sweeps
shelf    the pictures that tables name: samples, and the operator's folder
board    what is in their cells, followed from the studio
filling  the task that asks for what is missing
shown    a job in words and addresses, for pages, streams and JSON alike
uploads  bytes from strangers, until they are pictures
"""

from ui.lab.app import LabOptions, create_app, serve

__all__ = ["LabOptions", "create_app", "serve"]
