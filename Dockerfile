# Any service, from the repository's root:
#   docker build --target prod --build-arg SERVICE=invoice-app .

# Only what decides about packages. The next stage copies from this one, so that its layer of `npm ci`, which all services
# share, is built again when one of these files changes, and for no edit of a source.
FROM node:24-bookworm-slim AS manifests
WORKDIR /app
# Owned by the user that reads them: a clone made under umask 077 lets nobody else.
COPY --chown=65532:65532 . .
RUN find . -type f ! -name package.json ! -name package-lock.json ! -name .npmrc -delete && find . -type d -empty -delete

FROM node:24-bookworm-slim AS packages
WORKDIR /app
COPY --from=manifests /app .
# By folder: the root's own tools and the embedded Postgres of `local` stay out.
RUN --mount=type=cache,target=/root/.npm \
    npm ci --workspace=libraries --workspace=services

FROM packages AS sources
ARG SERVICE
COPY --chown=65532:65532 libraries/chassis libraries/chassis
COPY --chown=65532:65532 services/$SERVICE services/$SERVICE

# Runs the sources, and each save beside what ran before until it is ready: libraries/chassis/dev.
FROM sources AS dev
ENV SERVICE=$SERVICE
# By number, which is how Kubernetes can tell that it is not root.
USER 65532:65532
# The shell puts in the name and is gone: node is PID 1, which gets SIGTERM.
CMD ["sh", "-c", "exec node libraries/chassis/dev/serve.ts $SERVICE"]

FROM sources AS bundle
RUN node libraries/chassis/build.ts "$SERVICE" && mv "dist/$SERVICE" /bundle

# One file on an image without shell or package manager, whose entrypoint is node.
FROM gcr.io/distroless/nodejs24-debian13:nonroot AS prod
WORKDIR /app
COPY --from=bundle /bundle .
ENV NODE_ENV=production
USER 65532:65532
# checkov:skip=CKV_DOCKER_2:Kubernetes asks the probes of the manifest and never an image's HEALTHCHECK
# By itself Node opens its inspector at a SIGUSR1.
CMD ["--disable-sigusr1", "main.js"]
