import sys

from training.command import main

sys.exit(main())
