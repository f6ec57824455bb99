# docker build -t regstat . && docker run -p 3333:3333 regstat -pg-conn-str "host=db user=regstat dbname=regstat"
ARG PYTHON=docker.io/library/python:3.13-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
COPY deploy/build_pyz.py deploy/requirements.lock deploy/
COPY LICENSE ./
COPY regstat_lib regstat_lib
RUN python3 deploy/build_pyz.py /build/regstat.pyz \
    && install -d -o 65532 -g 65532 /build/data

FROM ${PYTHON}
COPY --from=build /build/regstat.pyz /regstat.pyz
# For -sqlite /data/regstat.db and a volume there, which takes the owner over.
COPY --from=build --chown=65532:65532 /build/data /data
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root's.
USER 65532:65532
WORKDIR /data
EXPOSE 3333
# The port is where the daemon's own arguments say, the last of them as the daemon has it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python3", "-I", "-c", "import re, urllib.request as u; p = re.findall(rb'\\0--?port[=\\0](\\d+)', open('/proc/1/cmdline', 'rb').read()); u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:%d/healthz' % int((p or [3333])[-1]), timeout=4)"]
# -I: nothing from the environment or the working directory is imported. Without arguments: Postgres on localhost.
ENTRYPOINT ["python3", "-I", "/regstat.pyz"]
