#!/bin/sh
# Makes the secrets that the manifests refer to, with random values that are never printed; existing ones are kept.
# S3 credentials are yours: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of this command.
# python -m infra.check_manifests reads the names and keys below and holds the manifests to them.
set -eu
namespace=emobench
: "${AWS_ACCESS_KEY_ID:?set it to the key of your bucket}" "${AWS_SECRET_ACCESS_KEY:?set it to the key of your bucket}"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# create NAME: the secret whose `key=value` lines come on standard input, so that no value is on a command line.
create() {
    if kubectl --namespace "$namespace" get secret "$1" >/dev/null 2>&1; then
        echo "secret $1 is there already: kept"
        cat >/dev/null
    else
        kubectl --namespace "$namespace" create secret generic "$1" --from-env-file=/dev/stdin >/dev/null
        echo "secret $1 made"
    fi
}

kubectl create namespace "$namespace" --dry-run=client --output=yaml | kubectl apply --filename=- >/dev/null

token=$(random)
create ray-token <<END
auth_token=$token
END

password=$(random)
create prefect-auth <<END
username=emobench
password=$password
auth-string=emobench:$password
END

password=$(random)
create postgres <<END
password=$password
connection-url=postgresql+asyncpg://prefect:$password@postgres:5432/prefect
END

create s3-credentials <<END
AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID
AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
END
