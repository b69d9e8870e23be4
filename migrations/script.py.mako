"""${message}."""

import sqlalchemy as sa
from alembic import op

revision = "${up_revision}"
down_revision = "${down_revision}"


# MariaDB commits every statement by itself, so a run may be killed between any two of them:
# guard each (if_not_exists, if_exists, an inspector), so that the migration can run again.
# Old and new servers run side by side meanwhile: add first, remove in a later release.
def upgrade() -> None:
    ${upgrades if upgrades else "raise NotImplementedError"}


def downgrade() -> None:
    ${downgrades if downgrades else "raise NotImplementedError"}
