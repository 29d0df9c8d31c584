"""What crosses a boundary: between client and worker, or from a job to the client that resumes it.

All of it travels as JSON or msgpack built from plain fields, never as pickles.
"""
