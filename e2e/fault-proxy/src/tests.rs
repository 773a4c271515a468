//! The engine and both fronts before small real servers, under real clients.

mod grpc;
mod kubernetes;
mod servers;
