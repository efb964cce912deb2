"""The command `strongroom`: talks to the API over HTTP, and starts the server. Whatever is heavy is imported late."""
