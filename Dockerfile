# syntax=docker/dockerfile:1
# The image of the node proxy: docker build -t <registry>/ztunnel:<tag> .
# Needs BuildKit (the default) for the caches. The build stage installs its tools by the repository's own `cargo xtask setup`.

FROM rust:1.95-slim-bookworm AS build
# The compiler's linker, and git for the revision that `ztunnel version` tells. Versions are Debian's of the day:
# old ones leave the mirrors, and nothing of this stage but the binary is kept.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# setup ends with an error when the kernel programs cannot be built, so no image goes without them. Line tables stay in the
# binary: a panic is logged with its place.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo xtask setup \
    && cargo build --locked --release --package ztunnel \
    && install -D target/release/ztunnel /out/usr/local/bin/ztunnel

# glibc, libgcc and the system's root certificates (XDS_ROOT_CA=SYSTEM), and no shell. A static musl binary would do with
# less, but its allocator costs connections per second; debian-slim would add a shell that a process with SYS_ADMIN need not have.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="ztunnel" \
      org.opencontainers.image.description="The per-node proxy of an ambient mesh" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/ /
# Default paths are relative to the working directory: ./var/run/secrets/…
WORKDIR /
# User 0, because the kernel lets only the owner of user namespaces enter network namespaces and load programs, and gives
# capabilities to another user's process only by file or ambient sets, which Kubernetes does not hand out. Group 1337 is what
# Istio's chart and rules know the proxy by.
# hadolint ignore=DL3002
USER 0:1337
ENTRYPOINT ["/usr/local/bin/ztunnel"]
CMD ["proxy"]
