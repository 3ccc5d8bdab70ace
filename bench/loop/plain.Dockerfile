# invoice-app the plain way. The build context holds the package files, services/ and libraries/.
FROM node:24-bookworm-slim
WORKDIR /app
COPY --chown=65532:65532 . .
RUN --mount=type=cache,target=/root/.npm \
    npm ci --workspace=libraries/chassis --workspace=services/invoice-app
ARG TSX
RUN --mount=type=cache,target=/root/.npm npm install --global "tsx@$TSX"
USER 65532:65532
# nodemon and tsx with their default settings.
CMD ["node_modules/.bin/nodemon", "--exec", "tsx", "services/invoice-app/src/main.ts"]
