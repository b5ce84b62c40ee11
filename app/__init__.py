"""The local server: jobs over HTTP and a web page. It needs the app extra."""
