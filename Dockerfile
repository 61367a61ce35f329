# The demo in a container, as a normal user:  docker build -t tapernorm . && docker run --rm -it tapernorm
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends make g++ && useradd --create-home user
WORKDIR /home/user/tapernorm
COPY dev/install_deps.sh dev/
RUN dev/install_deps.sh && rm -rf /var/lib/apt/lists/* && chown -R user .
USER user
COPY --chown=user . .
RUN make
CMD ["make", "demo"]
