//! The KBS attestation protocol 0.4: messages, JWE, report data, errors; pure.
