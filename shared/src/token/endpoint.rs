//! `POST /oauth/token`: its wire format, and what each answer means.
