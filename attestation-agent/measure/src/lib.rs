//! What the hardware will report, computed before launch; pure.
