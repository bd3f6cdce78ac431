//! Evidence, collateral and the time become claims or a named failure; pure.
