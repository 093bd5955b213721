"""The API, for programs: JSON, exact quantities as strings, errors as RFC 9457 says."""
