//! One pod from cold to gone.
