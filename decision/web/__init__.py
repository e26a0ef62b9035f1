"""The decision as a page and for a web server, which owns the routes: markup and JSON, no HTTP."""
