"""The lab: a site that computes and shows tables of pictures, live, and takes new ones.

request ─ headers ─ errors ─ Host ─ token ─ Origin, CSRF ─┬ views   pages, which work without JavaScript
                                                          ├ api     JSON and its OpenAPI document
                                                          ├ events  one stream of changes per page
                                                          └ media   pictures by opaque id
tables   what is to be seen, and the task that fills it
shown    a job in words and addresses, for pages, streams and JSON alike
uploads  bytes from strangers, until they are pictures
"""

from ui.lab.app import LabOptions, create_app, serve

__all__ = ["LabOptions", "create_app", "serve"]
