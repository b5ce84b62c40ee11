"""The local server: jobs over HTTP, and its web page. It needs the app extra."""
