# Builds any service, from the repository's root:
#   docker build --target prod --build-arg SERVICE=invoice-app .

# Only the files that determine the packages. The next stage copies from this one, so an edit of a source does not
# rebuild its `npm ci` layer, which all services share.
FROM node:24-bookworm-slim AS manifests
WORKDIR /app
# Owned by the user that runs the service: in a clone made under umask 077 only the owner may read the files.
COPY --chown=65532:65532 . .
RUN find . -type f ! -name package.json ! -name package-lock.json ! -name .npmrc -delete && find . -type d -empty -delete

FROM node:24-bookworm-slim AS packages
WORKDIR /app
COPY --from=manifests /app .
# By workspace: the root's tools and the embedded Postgres of `local` stay out.
RUN --mount=type=cache,target=/root/.npm \
    npm ci --workspace=libraries --workspace=services

FROM packages AS sources
ARG SERVICE
COPY --chown=65532:65532 libraries/chassis libraries/chassis
COPY --chown=65532:65532 services/$SERVICE services/$SERVICE

# Runs the sources. Saved code starts beside the old code, which serves until the new is ready: libraries/chassis/dev.
FROM sources AS dev
ENV SERVICE=$SERVICE
# By number, so that Kubernetes can tell that the user is not root.
USER 65532:65532
# The shell expands the name, then node replaces it as PID 1 and gets SIGTERM.
CMD ["sh", "-c", "exec node libraries/chassis/dev/serve.ts $SERVICE"]

FROM sources AS bundle
RUN node libraries/chassis/build.ts "$SERVICE" && mv "dist/$SERVICE" /bundle

# One file, on an image without shell or package manager. The image's entrypoint is node.
FROM gcr.io/distroless/nodejs24-debian13:nonroot AS prod
WORKDIR /app
COPY --from=bundle /bundle .
ENV NODE_ENV=production
USER 65532:65532
# checkov:skip=CKV_DOCKER_2:Kubernetes asks the probes of the manifest and never an image's HEALTHCHECK
# By default Node opens its inspector on SIGUSR1.
CMD ["--disable-sigusr1", "main.js"]
